"""Ten questions about one document: the full cache, one selection, prefills anew, and the vault.

    measure/questions.py        # writes results/questions-smollm2-6k.json

Of each budget:
    full       the cache of all tokens; a later question goes in after the document, which is there
    full turn  the same, but later questions come after the first and its answer, as one-shot's do
    one-shot   rows are chosen for the first question; the others are asked after its answer
    anew       the document is prefilled again for each question
    vault      the document is prefilled once; each question chooses its rows from the vault

Prefills anew and from the vault take turns, so that a machine that is busy for a while delays both. Last,
the vault's questions are asked again from a place where a chunk of the prefill ends: both then compute in
the same chunks.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local import SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.eval.case import Case
from snapkv_local.eval.scores import Seen, measure
from snapkv_local.eval.tasks import Wanted, get
from snapkv_local.hardware import n_cores
from snapkv_local.models.resolve import demo_model

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "questions-smollm2-6k.json"

TASK = "needle"
N_PROMPT = 6000
N_QUESTIONS = 10
N_CTX = 8192
BUDGETS = (512, 256)
DECODE_CELLS = 256
CHUNK = 512  # tokens of a prompt that are computed at once

Logits = npt.NDArray[np.float32]
Kept = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Answer:
    """One question, asked in one way.

    Attributes:
        seconds: until the logits that the answer's first token is chosen from.
        seconds_cpu: of that, those in which this process ran; others may use the machine.
        n_evaluated: tokens that were computed for it.
        scores: of the answer's tokens, against the full cache's.
    """

    seconds: float
    seconds_cpu: float
    n_evaluated: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Heard:
    """What a model says after a question.

    Attributes:
        seconds, seconds_cpu, n_evaluated: as in Answer.
        logits: of the question's last token, [1, n_vocab], and those that choose the answer's
            tokens, [n_gold, n_vocab].
    """

    seconds: float
    seconds_cpu: float
    n_evaluated: int
    logits: Logits

    @property
    def gold(self) -> Logits:
        """[n_gold, n_vocab]."""
        return self.logits[1:]


def hear(llm: Llama, case: Case, evaluate: Callable[[], int]) -> Heard:
    """Time what evaluates a question, then feed the answer's opening and score the answer."""
    from llama_cpp import llama_cpp

    started, started_cpu = time.monotonic(), time.process_time()
    n_evaluated = evaluate()
    llama_cpp.llama_synchronize(llm.ctx)
    seconds, seconds_cpu = time.monotonic() - started, time.process_time() - started_cpu
    last = np.ctypeslib.as_array(llm._ctx.get_logits(), (1, llm.n_vocab())).copy()
    rows = llm.logits_for([*case.after, *case.gold[:-1]])
    logits = np.concatenate([last, rows[len(case.after) - 1 :]])
    return Heard(seconds, seconds_cpu, n_evaluated, logits)


def prefill(llm: Llama, case: Case) -> Heard:
    """A prompt from its begin, or from where it parts from what the vault has."""

    def evaluate() -> int:
        stats = llm.prefill(case.prompt)
        return stats.n_prompt - stats.n_cached

    return hear(llm, case, evaluate)


def go_on(llm: Llama, case: Case, start: int, tokens: Sequence[int]) -> Heard:
    """Tokens in the place of what follows the first `start`."""

    def evaluate() -> int:
        llm.n_tokens = start
        llm.eval(tokens)
        return len(tokens)

    return hear(llm, case, evaluate)


def turn(llm: Llama, case: Case) -> list[int]:
    """The question as the next turn of a chat, up to where the answer begins, in ChatML."""
    assert case.question is not None
    question = llm.detokenize(case.prompt[slice(*case.question)], special=True).decode().strip()
    text = f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return list(llm.tokenize(text.encode(), add_bos=False, special=True))


def later(llm: Llama, cases: Sequence[Case]) -> list[Heard]:
    """All questions but the first, each after the first and its answer, which the cache ends with."""
    # the answer's last token was scored, not fed: it goes in with the turn
    start, last = llm.n_tokens, cases[0].gold[-1]
    return [go_on(llm, case, start, [last, *turn(llm, case)]) for case in cases[1:]]


def full_cache(llm: Llama, cases: Sequence[Case]) -> tuple[list[Heard], list[Heard]]:
    """Questions in the first's place, and after the first and its answer."""
    llm.reset()
    first = go_on(llm, cases[0], 0, cases[0].prompt)
    after = [first, *later(llm, cases)]
    in_place = [first]
    for before, case in itertools.pairwise(cases):
        n = common(before.prompt, case.prompt)
        in_place.append(go_on(llm, case, n, case.prompt[n:]))
    return in_place, after


def ask(
    make: Callable[..., Llama], cases: Sequence[Case], budgets: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Rows of the record: one for each budget and way of asking. The cases are of one document."""
    llm = make(None)
    in_place, after = full_cache(llm, cases)
    llm.close()
    truth = [
        Seen.of(heard.gold, case.gold, is_full=True)
        for heard, case in zip(in_place, cases, strict=True)
    ]

    def row(way: str, budget: int | None, heard: Sequence[Heard], **beside: Any) -> dict[str, Any]:
        answers = [
            Answer(h.seconds, h.seconds_cpu, h.n_evaluated, measure(Seen.of(h.gold, c.gold), full))
            for h, c, full in zip(heard, cases, truth, strict=True)
        ]
        found = {"way": way, "budget": budget, **summary(answers), **beside}
        return {**found, "answers": [asdict(answer) for answer in answers]}

    yield row("full", None, in_place)
    yield row("full turn", None, after)
    config = SnapKVConfig(budget=max(budgets), decode_cells=DECODE_CELLS)
    without, vaulted = make(config), make(replace(config, vault="ram"))
    for budget in budgets:
        for llm in (without, vaulted):
            llm.set_snapkv(replace(llm.snapkv, budget=budget))
        vaulted.clear_vault()
        anew, vault, kept_anew, kept_vault = [], [], [], []
        for case in cases:
            anew.append(prefill(without, case))
            kept_anew.append(without.kept_positions())
            if case is cases[0]:
                one_shot = [anew[0], *later(without, cases)]
            vault.append(prefill(vaulted, case))
            kept_vault.append(vaulted.kept_positions())
        yield row("one-shot", budget, one_shot)
        yield row("anew", budget, anew)
        against = compare(anew[1:], vault[1:], kept_anew[1:], kept_vault[1:])
        beside = {
            "against_anew": against,
            "seconds_ratios": [y.seconds / x.seconds for x, y in zip(anew, vault, strict=True)][1:],
            "seconds_cpu_ratios": [
                y.seconds_cpu / x.seconds_cpu for x, y in zip(anew, vault, strict=True)
            ][1:],
        }
        yield row("vault", budget, vault, **beside)

        heard, kept = aligned(vaulted, cases)
        against = compare(anew[1:], heard, kept_anew[1:], kept)
        yield row("vault, equal chunks", budget, [anew[0], *heard], against_anew=against)
    for llm in (without, vaulted):
        llm.close()


def aligned(llm: Llama, cases: Sequence[Case]) -> tuple[list[Heard], list[Kept]]:
    """All questions but the first, from a place where a chunk of the document's prefill ended."""
    n = min(common(cases[0].prompt, case.prompt) for case in cases[1:]) // CHUNK * CHUNK
    # it parts from all prompts there
    used = {case.prompt[n] for case in cases}
    other = next(token for token in cases[0].prompt if token not in used)
    parting = [*cases[0].prompt[:n], *[other] * 64]
    llm.clear_vault()
    heard, kept = [], []
    for case in cases[1:]:
        llm.prefill(parting)
        heard.append(prefill(llm, case))
        if heard[-1].n_evaluated != len(case.prompt) - n:
            raise RuntimeError(f"{heard[-1].n_evaluated} tokens were evaluated, not from {n} on")
        kept.append(llm.kept_positions())
    return heard, kept


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return sum(1 for _ in pairs)


def jaccard(a: Kept, b: Kept) -> npt.NDArray[np.float64]:
    """Of kept sets [..., n_kept], by layer and head: [...]."""
    flat = zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True)
    shares = [len(np.intersect1d(x, y)) / len(np.union1d(x, y)) for x, y in flat]
    return np.array(shares).reshape(a.shape[:-1])


def compare(
    a: Sequence[Heard], b: Sequence[Heard], kept_a: Sequence[Kept], kept_b: Sequence[Kept]
) -> dict[str, Any]:
    """How far b is from a: kept sets over questions, layers and heads, and logits.

    The question's last token has seen the whole document, in both: there logits differ by rounding
    alone. Those of the answer come from the kept rows.
    """
    shares = np.array([jaccard(x, y) for x, y in zip(kept_a, kept_b, strict=True)])
    same = [x.gold.argmax(1) == y.gold.argmax(1) for x, y in zip(a, b, strict=True)]
    off = [np.abs(x.logits - y.logits) for x, y in zip(a, b, strict=True)]
    return {
        "jaccard_mean": float(shares.mean()),
        "jaccard_min": float(shares.min()),
        "jaccard_mean_by_layer": [round(float(x), 4) for x in shares.mean(axis=(0, 2))],
        "logits_largest_difference_question": max(float(x[0].max()) for x in off),
        "logits_largest_difference_answer": max(float(x[1:].max()) for x in off),
        "logits_mean_difference_answer": float(np.mean([x[1:].mean() for x in off])),
        "same_answer_tokens": float(np.concatenate(same).mean()),
    }


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Right answers, and seconds of the first question and of the others."""
    others = [answer.seconds for answer in answers[1:]]
    return {
        "right": sum(round(answer.scores["exact"]) for answer in answers),
        "n": len(answers),
        "kl_mean": statistics.fmean(answer.scores["kl"] for answer in answers),
        "seconds_first": answers[0].seconds,
        "seconds_median": statistics.median(others),
        "seconds_max": max(others),
        "seconds_cpu_median": statistics.median(answer.seconds_cpu for answer in answers[1:]),
        "n_evaluated_median": statistics.median(answer.n_evaluated for answer in answers[1:]),
    }


def main() -> None:
    # only now: it loads the native library
    from snapkv_local.eval.tokens import open_tokens
    from snapkv_local.llama.llama import Llama

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--length", type=int, default=N_PROMPT)
    parser.add_argument("--threads", type=int, default=n_cores())
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    if args.length != N_PROMPT and args.out == RECORD:
        parser.error(f"the record is of {N_PROMPT} tokens: name another file with --out")
    commit = records.commit(ROOT)
    path = demo_model()

    def make(config: SnapKVConfig | None) -> Llama:
        return Llama(
            str(path),
            snapkv=config,
            n_ctx=N_CTX,
            n_batch=CHUNK,
            n_ubatch=CHUNK,
            flash_attn=True,
            n_threads=args.threads,
            n_threads_batch=args.threads,
            verbose=False,
        )

    wanted = Wanted((args.length,), n_documents=1, n_questions=N_QUESTIONS)
    cases = list(get(TASK).cases(open_tokens(path), wanted))
    rows = []
    for row in ask(make, cases, args.budgets):
        rows.append(row)
        print({name: row[name] for name in row if name != "answers"}, file=sys.stderr, flush=True)
        found = {
            "date": date.today().isoformat(),
            "commit": commit,
            "machine": records.machine(),
            "model": "SmolLM2-135M-Instruct Q4_1",
            "settings": {
                "task": TASK,
                "n_prompt": args.length,
                "n_questions": N_QUESTIONS,
                "n_ctx": N_CTX,
                "chunk": CHUNK,
                "threads": args.threads,
                "kv_type": "f16",
                "snapkv": asdict(SnapKVConfig(budget=max(args.budgets), decode_cells=DECODE_CELLS)),
            },
            "rows": rows,
        }
        records.write(args.out, found)


if __name__ == "__main__":
    main()
