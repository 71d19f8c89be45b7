"""Many questions about one document: the full cache, one selection, prefills anew, vault and file.

    measure/questions.py        # ten, of SmolLM2; writes results/questions-smollm2-6k.json
    measure/questions.py --model needle --length 131072 --questions 100 --budgets 128 512 \\
        --ways full vault document --out FILE     # on a GPU machine, with --chunk 2048

Of each budget:
    full       the cache of all tokens; a later question goes in after the document, which is there
    full turn  the same, but later questions come after the first and its answer, as one-shot's do
    one-shot   rows are chosen for the first question; the others are asked after its answer
    anew       the document is prefilled again for each question
    vault      the document is prefilled once; each question chooses its rows from the vault
    document   the same from a file, which another Llama wrote: the first question, too

Prefills anew and from the vault take turns, so that a machine that is busy for a while delays both. With
both, the vault's questions are asked again from a place where a chunk of the prefill ends: both then
compute in the same chunks.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heard import Answer, Heard, Kept, common, compare, hear, summary
from snapkv_local import SnapKVConfig
from snapkv_local.bench import record as records
from snapkv_local.bench.matrix import Model
from snapkv_local.bench.runner import Machine
from snapkv_local.eval.case import Case
from snapkv_local.eval.scores import Seen, measure
from snapkv_local.eval.tasks import Wanted, get
from snapkv_local.hardware import n_cores
from snapkv_local.models.resolve import resolve
from snapkv_local.prompt import vocabulary

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "questions-smollm2-6k.json"

TASK = "needle"
N_PROMPT = 6000
N_QUESTIONS = 10
WAYS = ("full", "one-shot", "anew", "vault", "document")
BUDGETS = (512, 256)
DECODE_CELLS = 256
CHUNK = 512  # tokens of a prompt that are computed at once, if no other number is given


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


def full_cache(llm: Llama, cases: Sequence[Case], turns: bool) -> tuple[list[Heard], list[Heard]]:
    """Questions in the first's place, and with turns after the first and its answer."""
    llm.reset()
    first = go_on(llm, cases[0], 0, cases[0].prompt)
    after = [first, *later(llm, cases)] if turns else []
    in_place = [first]
    for before, case in itertools.pairwise(cases):
        n = common(before.prompt, case.prompt)
        in_place.append(go_on(llm, case, n, case.prompt[n:]))
    return in_place, after


def ask(
    make: Callable[..., Llama],
    cases: Sequence[Case],
    budgets: Sequence[int],
    ways: Sequence[str] = WAYS,
) -> Iterator[dict[str, Any]]:
    """Rows of the record: one for each budget and way of asking. The cases are of one document.

    The full cache is always asked: the other answers are compared with its own.
    """
    llm = make(None)
    in_place, after = full_cache(llm, cases, turns="one-shot" in ways)
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
        held = max((h.bytes_kv for h in heard), default=0)
        found = {"way": way, "budget": budget, "bytes_kv": held, **summary(answers), **beside}
        return {**found, "answers": [asdict(answer) for answer in answers]}

    yield row("full", None, in_place)
    if after:
        yield row("full turn", None, after)
    config = SnapKVConfig(budget=max(budgets), decode_cells=DECODE_CELLS)
    if "document" in ways:
        yield from from_file(make, replace(config, vault="ram"), cases, budgets, row)
    without = make(config) if {"one-shot", "anew"} & {*ways} else None
    vaulted = make(replace(config, vault="ram")) if "vault" in ways else None
    for budget in budgets:
        for llm in filter(None, (without, vaulted)):
            llm.set_snapkv(replace(llm.snapkv, budget=budget))
        if vaulted is not None:
            vaulted.clear_vault()
        anew, vault, one_shot, kept_anew, kept_vault = [], [], [], [], []
        for case in cases:
            if without is not None and ("anew" in ways or case is cases[0]):
                anew.append(prefill(without, case))
                kept_anew.append(without.kept_positions())
            if without is not None and "one-shot" in ways and case is cases[0]:
                one_shot = [anew[0], *later(without, cases)]
            if vaulted is not None:
                vault.append(prefill(vaulted, case))
                kept_vault.append(vaulted.kept_positions())
        if one_shot:
            yield row("one-shot", budget, one_shot)
        if "anew" in ways:
            yield row("anew", budget, anew)
        if vaulted is None:
            continue
        if "anew" not in ways:
            yield row("vault", budget, vault)
            continue
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
    for llm in filter(None, (without, vaulted)):
        llm.close()


def from_file(
    make: Callable[..., Llama],
    config: SnapKVConfig,
    cases: Sequence[Case],
    budgets: Sequence[int],
    row: Callable[..., dict[str, Any]],
) -> Iterator[dict[str, Any]]:
    """The document is written to a file, and asked by a Llama that has never read it."""
    with tempfile.TemporaryDirectory(prefix="questions-") as folder:
        path = Path(folder) / "document.snapkv"
        llm = make(config)
        started = time.monotonic()
        llm.ingest(document_of(llm, cases[0]), path)
        beside = {"seconds_ingest": time.monotonic() - started, "bytes_file": path.stat().st_size}
        llm.close()
        for budget in budgets:
            llm = make(replace(config, budget=budget))
            llm.open_document(path)
            heard = [prefill(llm, case) for case in cases]
            llm.close()
            if heard[0].n_evaluated > len(cases[0].prompt) // 2:
                raise RuntimeError(f"{heard[0].n_evaluated} tokens were evaluated: not the file's")
            yield row("document", budget, heard, **beside)


def document_of(llm: Llama, case: Case) -> str:
    """The text that stands between the template's words and the question."""
    assert case.question is not None
    pieces = vocabulary.pieces(llm, case.prompt[case.system[1] : case.question[0]])
    return b"".join(pieces).decode().strip()


def aligned(llm: Llama, cases: Sequence[Case]) -> tuple[list[Heard], list[Kept]]:
    """All questions but the first, from a place where a chunk of the document's prefill ended."""
    chunk = llm.n_batch
    n = min(common(cases[0].prompt, case.prompt) for case in cases[1:]) // chunk * chunk
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


def described(path: Path) -> str:
    """A model's name and the type of its weights."""
    model = Model.read(path)
    return f"{model.name} {model.weights}"


def main() -> None:
    # only now: it loads the native library
    from snapkv_local.eval.tokens import open_tokens
    from snapkv_local.llama.llama import Llama

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a path, demo, or needle")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--length", type=int, default=N_PROMPT, help="of a prompt, in tokens")
    parser.add_argument("--questions", type=int, default=N_QUESTIONS)
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=WAYS)
    parser.add_argument("--chunk", type=int, default=CHUNK, help="tokens computed at once")
    parser.add_argument("--gpu-layers", default="auto")
    parser.add_argument("--threads", type=int, default=n_cores())
    parser.add_argument("--out", type=Path, default=RECORD)
    args = parser.parse_args()
    as_recorded = ("demo", N_PROMPT, N_QUESTIONS, WAYS)
    given = (args.model, args.length, args.questions, tuple(args.ways))
    if args.out == RECORD and given != as_recorded:
        parser.error("the record is of other settings: name another file with --out")
    commit = records.commit(ROOT)
    path = resolve(args.model)
    machine = Machine.describe()
    n_gpu_layers = machine.n_gpu_layers(args.gpu_layers)
    wanted = Wanted((args.length,), n_documents=1, n_questions=args.questions)
    tokens = open_tokens(path)
    cases = list(get(TASK).cases(tokens, wanted))
    # the longest turn of a conversation of all questions
    n_ctx = args.length + 2048

    def make(config: SnapKVConfig | None) -> Llama:
        return Llama(
            str(path),
            snapkv=config,
            n_ctx=n_ctx,
            n_batch=args.chunk,
            n_ubatch=args.chunk,
            n_gpu_layers=n_gpu_layers,
            flash_attn=True,
            n_threads=args.threads,
            n_threads_batch=args.threads,
            verbose=False,
        )

    rows = []
    for row in ask(make, cases, args.budgets, args.ways):
        rows.append(row)
        print({name: row[name] for name in row if name != "answers"}, file=sys.stderr, flush=True)
        found = {
            "date": date.today().isoformat(),
            "commit": commit,
            "machine": records.machine(),
            "device": machine.device(n_gpu_layers),
            "model": described(path),
            "settings": {
                "task": TASK,
                "n_prompt": args.length,
                "n_questions": args.questions,
                "n_ctx": n_ctx,
                "chunk": args.chunk,
                "threads": args.threads,
                "kv_type": "f16",
                "snapkv": asdict(SnapKVConfig(budget=max(args.budgets), decode_cells=DECODE_CELLS)),
            },
            "rows": rows,
        }
        records.write(args.out, found)


if __name__ == "__main__":
    main()
