"""Running cases: what is prefilled, kept and scored, the record, resuming, bytes."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from snapkv_local.errors import ConfigError
from snapkv_local.eval.case import Case
from snapkv_local.eval.cell import Cell, kv_bytes
from snapkv_local.eval.record import Record
from snapkv_local.eval.runner import Evaluation, Needs
from snapkv_local.eval.settings import Settings, check_cases
from snapkv_local.eval.tasks import Wanted
from snapkv_local.models.gguf_shape import ModelShape
from snapkv_local.plan.kinds import Layer
from snapkv_local.plan.model import PlannedModel
from snapkv_local.policies.recall import Recall
from snapkv_local.policies.selective import Selective
from snapkv_local.policies.view import LayerView

N_VOCAB = 258
N_LAYER, N_HEAD_KV, N_HEAD, DIM = 2, 2, 4, 8
WINDOW = 32
STAMP = {"model": {"name": "fake"}, "commit": "abc", "date": "2026-01-01"}


class FakeEngine:
    """Its logits depend on which rows are kept and on the token after the prompt, and on nothing else."""

    def __init__(self, kv_type="f16"):
        rng = np.random.default_rng(3)
        self.rows = rng.normal(size=(N_LAYER, N_HEAD_KV, N_VOCAB, N_VOCAB)).astype(np.float32)
        if kv_type != "f16":
            self.rows += 0.01 * rng.normal(size=self.rows.shape).astype(np.float32)
        self.calls = []
        self.closed = False

    def prefill(self, tokens):
        self.calls.append("prefill")
        self.prompt = np.asarray(tokens)
        self.select_rows(None)
        self.calls.pop()

    def prefill_with(self, tokens, budget, settings, view):
        self.calls.append(("prefill", budget, settings))
        self.prompt = np.asarray(tokens)
        self.select_rows(
            [np.tile(np.arange(min(budget, len(tokens)) - WINDOW), (N_HEAD_KV, 1))] * N_LAYER
        )
        self.calls.pop()
        return SimpleNamespace(
            n_selected=16, n_layer_all=1, settled=0.5, layer_work=0.75, seconds_select=0.1
        )

    def rewind(self):
        self.fed = 0

    def layer_views(self):
        self.calls.append("views")
        rng = np.random.default_rng(4)
        n = len(self.prompt)

        def made(n_head, n_rows):
            return rng.normal(size=(n_head, n_rows, DIM)).astype(np.float32)

        return [
            LayerView(i, N_LAYER, made(N_HEAD, 32), made(N_HEAD_KV, n), made(N_HEAD_KV, n), 0.3, 0)
            for i in range(N_LAYER)
        ]

    def repeated_views(self, begin):
        self.calls.append(f"repeat from {begin}")
        return self.layer_views()

    def select_rows(self, ids):
        self.calls.append("keep")
        n = len(self.prompt)
        window = np.arange(n - 32, n)
        self.kept = [
            [
                np.arange(n) if ids is None else np.append(ids[i][h], window)
                for h in range(N_HEAD_KV)
            ]
            for i in range(N_LAYER)
        ]
        self.fed = 0

    def logits_for(self, tokens, last):
        self.calls.append("score")
        state = sum(
            self.rows[i, h, self.prompt[positions]].mean(0)
            for i, layer in enumerate(self.kept)
            for h, positions in enumerate(layer)
        )
        assert self.fed == 0 or len(tokens) == 1, "score() goes on from the end of the prompt"
        self.fed += len(tokens)
        return np.stack([8 * state + self.rows[0, 0, token] for token in tokens[-last:]])

    def close(self):
        self.closed = True


class Recent:
    """Keeps the rows before the window."""

    spec = "recent"

    def repeats(self):
        return False

    def n_observed(self, prompt):
        return prompt.window_size

    def always(self, prompt):
        return np.arange(sum(end - begin for begin, end in prompt.protected))

    def rows(self, n_rows, layers, prompt):
        return [n_rows] * len(layers)

    def select(self, layer, prompt, n_rows):
        end = prompt.n_prompt - prompt.window_size
        return np.tile(np.arange(end - n_rows, end, dtype=np.int32), (len(layer.k), 1))


class First(Recent):
    """Keeps the first rows, and one more in the first layer than in the second."""

    spec = "first"

    def rows(self, n_rows, layers, prompt):
        return [n_rows + 1, n_rows - 1]

    def select(self, layer, prompt, n_rows):
        return np.tile(np.arange(n_rows, dtype=np.int32), (len(layer.k), 1))


class NamedTask:
    name = "t"

    def settings(self):
        return {}


SETTINGS = Settings(
    tasks=(NamedTask(),),
    wanted=Wanted(lengths=(100,), n_documents=2),
    policies=("recent", "first"),
    budgets=(40, 64, 512),
    window_size=WINDOW,
)
POLICIES = {"recent": Recent(), "first": First()}
MODEL = PlannedModel(
    path=None,
    shape=ModelShape(
        arch="gemma2", name="", n_layer=4, n_ctx_train=1000, n_embd=64, n_head=(4,) * 4,
        n_head_kv=(2,) * 4, head_k=32, head_v=64, n_swa=50, n_vocab=N_VOCAB, has_chat_template=True,
        has_learned_positions=False,
    ),
    layers=tuple(
        Layer(
            n_head=4, n_voters=4, n_head_kv=2, head_k=32, head_v=64, n_result=128, n_projected=128,
            n_placed=256, is_swa=swa, bytes_state=0, n_mix=0, n_ff=1, n_expert_used=0, is_gated=True,
            has_dense=True,
        )
        for swa in (True, False, True, False)
    ),
    n_hidden=64, n_added=0, bytes_input=1, bytes_layers=(1,) * 4, bytes_output=1, bytes_tied=1,
)  # fmt: skip
ROW = 2 * (32 + 64)  # elements of K and V of a position in one layer


def make_cases(n_documents=2):
    rng = np.random.default_rng(5)

    def tokens(n):
        return tuple(rng.integers(0, 256, n).tolist())

    found = []
    for d in range(n_documents):
        document = tokens(100)
        for q in range(2):
            # the second document's questions share all of the prompt
            prompt = document if d == 1 else (*document, *tokens(20))
            found.append(
                Case(f"t/100/{d}/{q}", "t", f"t/100/{d}", 100, prompt, tokens(3), tokens(4))
            )
    return found


class Run:
    """Runs and what they did."""

    def __init__(
        self, path, settings=SETTINGS, cases=None, stop_after=None, policies=POLICIES, stamp=STAMP
    ):
        self.engines = {}
        self.cases = make_cases() if cases is None else cases
        self.done = []
        self.stop_after = stop_after
        self.record = Record.open(path, stamp, settings, self.cases)
        self.evaluation = Evaluation(
            settings, self.cases, policies, MODEL, self.open_engine, self.record
        )

    def open_engine(self, kv_type):
        self.engines[kv_type] = FakeEngine(kv_type)
        return self.engines[kv_type]

    def on_done(self, kv_type, case):
        self.done.append((kv_type, case.id))
        if len(self.done) == self.stop_after:
            raise KeyboardInterrupt

    def run(self):
        self.evaluation.run(self.on_done)
        return self.record.data


@pytest.fixture
def path(tmp_path):
    return tmp_path / "record.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("eval") / "record.json").run()


def test_every_case_has_every_cell(data):
    assert len(data["cases"]) == 4
    for case in data["cases"].values():
        assert set(case["scores"]) == set(data["cells"]) == set(case["bytes"])
        assert len(case["scores"]) == 1 + 2 * 3


def test_all_rows_are_the_full_cache_and_fewer_are_not(data):
    for case in data["cases"].values():
        full = case["scores"]["full/f16"]
        assert full["kl"] == 0 and full["top1"] == 1
        assert case["scores"]["recent/512/f16"] == full
        assert case["scores"]["recent/64/f16"]["kl"] > 0.001
        assert case["scores"]["recent/64/f16"] != case["scores"]["first/64/f16"]


def test_scores_are_of_the_kept_rows(data):
    """Against the model itself, with rows and positions written out."""
    case = make_cases()[0]
    engine = FakeEngine()
    engine.prefill(case.prompt)
    full = engine.logits_for([*case.after, *case.gold[:-1]], len(case.gold))
    before = np.arange(len(case.prompt) - WINDOW - 32, len(case.prompt) - WINDOW)
    engine.select_rows([np.tile(before, (N_HEAD_KV, 1))] * N_LAYER)
    kept = engine.logits_for([*case.after, *case.gold[:-1]], len(case.gold))

    def log_p(logits):
        return logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))

    p, q = log_p(full), log_p(kept)
    scores = data["cases"][case.id]["scores"]["recent/64/f16"]
    assert len(kept) == len(case.gold)
    assert scores["kl"] == pytest.approx((np.exp(p) * (p - q)).sum(-1).mean(), abs=2e-5)
    nll = -np.mean([q[i, token] for i, token in enumerate(case.gold)])
    assert scores["nll"] == pytest.approx(nll, abs=1e-4)
    assert scores["top1"] == np.mean(full.argmax(-1) == kept.argmax(-1))
    assert scores["accuracy"] == np.mean(kept.argmax(-1) == case.gold)


def test_bytes_are_those_of_the_rows(data):
    sliding = 2 * 50 * ROW * 2  # of the two layers with a window of 50, in f16
    case = data["cases"]["t/100/0/0"]
    assert case["n_prompt"] == 120
    assert case["bytes"]["full/f16"] == 2 * 120 * ROW * 2 + sliding
    assert case["bytes"]["recent/64/f16"] == 2 * 64 * ROW * 2 + sliding
    # 33 and 31 rows before the window
    assert case["bytes"]["first/64/f16"] == (65 + 63) * ROW * 2 + sliding
    assert kv_bytes(MODEL, "q8_0", 120, None) == (2 * 120 + 2 * 50) * ROW * 34 // 32
    assert kv_bytes(MODEL, "q4_0", 30, None) == 4 * 30 * ROW * 18 // 32


def test_one_prefill_a_prompt_and_one_score_a_cell(path):
    run = Run(path)
    run.run()
    calls = run.engines["f16"].calls
    assert calls.count("prefill") == 3  # the second document's questions share it
    assert calls.count("views") == 3
    assert calls.count("score") == 4 * 7
    assert run.engines["f16"].closed


def test_what_says_how_a_prompt_is_prefilled_has_its_own_prefill(path):
    policies = {**POLICIES, "selective:share=0.5": Selective(share=0.5)}
    run = Run(path, replace(SETTINGS, policies=tuple(policies)), policies=policies)
    data = run.run()
    prefills = [call for call in run.engines["f16"].calls if call[0] == "prefill"]
    assert [budget for _, budget, _ in prefills] == [40, 64, 512] * 3
    assert {settings["select_share"] for _, _, settings in prefills} == {0.5}
    assert {settings["kernel_size"] for _, _, settings in prefills} == {21}
    figures = data["cases"]["t/100/0/0"]["prefills"]
    assert list(figures) == [f"selective:share=0.5/{budget}/f16" for budget in (40, 64, 512)]
    assert all(f["layer_work"] == 0.75 and f["cpu_seconds"] >= 0 for f in figures.values())
    assert run.engines["f16"].calls.count("score") == 4 * 10
    scores = data["cases"]["t/100/0/0"]["scores"]
    # the same rows as those that "first" keeps in the mean
    assert scores["selective:share=0.5/40/f16"]["kl"] > 0
    bytes_of = data["cases"]["t/100/0/0"]["bytes"]
    assert bytes_of["selective:share=0.5/64/f16"] == bytes_of["recent/64/f16"]


def test_an_answer_between_whose_tokens_rows_change_is_fed_token_by_token(path):
    policies = {"selective": Selective(), "recall": Recall()}
    run = Run(path, replace(SETTINGS, policies=tuple(policies)), policies=policies)
    data = run.run()
    n_fed = [len(case.after) + len(case.gold) - 1 for case in make_cases()]
    at_once = 4 * (1 + 3)  # the full cache, and selective with each budget
    assert run.engines["f16"].calls.count("score") == at_once + 3 * sum(n_fed)
    for case in data["cases"].values():
        for budget in (40, 64, 512):
            scores = [case["scores"][f"{name}/{budget}/f16"] for name in policies]
            assert scores[0] == scores[1] and scores[0]["kl"] >= 0


def test_quantized_caches_are_compared_with_the_full_f16_one(path):
    settings = replace(SETTINGS, kv_types=("q8_0", "q4_0"))
    run = Run(path, settings)
    data = run.run()
    assert list(run.engines) == ["f16", "q8_0", "q4_0"]
    assert run.engines["f16"].calls.count("score") == 4
    for case in data["cases"].values():
        assert [c for c in case["scores"] if c.endswith("/f16")] == ["full/f16"]
        assert 0 < case["scores"]["full/q8_0"]["kl"] < case["scores"]["recent/64/q8_0"]["kl"]


def test_full_caches_of_other_types_beside_the_policies(path):
    run = Run(path, replace(SETTINGS, full_kv_types=("q4_0",)))
    for case in run.run()["cases"].values():
        assert [c for c in case["scores"] if c.endswith("/q4_0")] == ["full/q4_0"]
        assert case["scores"]["full/q4_0"]["kl"] > 0
    assert "views" not in run.engines["q4_0"].calls


def test_a_length_is_done_in_all_types_before_the_next(path):
    short = make_cases(1)
    long = [replace(case, id=f"long {case.id}", length=200) for case in short]
    run = Run(path, replace(SETTINGS, full_kv_types=("q4_0",)), [*short, *long])
    run.run()
    assert [kv_type for kv_type, _ in run.done] == ["f16"] * 2 + ["q4_0"] * 2 + ["f16"] * 2 + [
        "q4_0"
    ] * 2


def test_time_that_is_up_begins_no_prompt(path):
    run = Run(path)
    run.evaluation.run(run.on_done, 0.0)
    assert run.done == [] and run.engines["f16"].closed
    assert len(Run(path).run()["cases"]) == 4


def test_threads_choose_the_same_rows(path, data):
    run = Run(path)
    run.evaluation.threads = 4
    assert run.run()["cases"] == data["cases"]


def test_a_record_is_gone_on_with(path):
    stopped = Run(path, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert stopped.engines["f16"].closed
    assert len(json.loads(path.read_text())["cases"]) == 2

    rest = Run(path)
    data = rest.run()
    assert [name for _, name in rest.done] == ["t/100/1/0", "t/100/1/1"]
    assert data["cases"] == Run(None).run()["cases"]
    assert json.loads(path.read_text())["cases"] == data["cases"]

    nothing = Run(path)
    nothing.run()
    assert nothing.engines == {} and nothing.done == []


def test_each_case_has_the_commit_that_measured_it(path):
    with pytest.raises(KeyboardInterrupt):
        Run(path, stop_after=2).run()
    data = Run(path, stamp={**STAMP, "commit": "def"}).run()
    assert [case["commit"] for case in data["cases"].values()] == ["abc", "abc", "def", "def"]
    assert data["commit"] == "def"


def test_another_models_record(path):
    Run(path).run()
    with pytest.raises(ConfigError, match=r"another evaluation \(model: "):
        Run(path, stamp={**STAMP, "model": {"name": "other"}})


def test_the_reference_is_made_again_where_other_types_need_it(path):
    settings = replace(SETTINGS, kv_types=("f16", "q8_0"))
    stopped = Run(path, settings, stop_after=5)  # 4 in f16, 1 in q8_0
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    rest = Run(path, settings)
    data = rest.run()
    assert rest.engines["f16"].calls.count("score") == 3  # the full cache only
    assert data["cases"] == Run(None, settings).run()["cases"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"budgets": (40, 64)}, r"budgets: \[40, 64, 512\] there, \[40, 64\] here"),
        ({"wanted": Wanted(lengths=(100,), n_documents=2, seed=1)}, "seed: 0 there, 1 here"),
        ({"protect_system": True}, "protect_system"),
    ],
)
def test_a_record_of_other_settings(path, changes, says):
    Run(path).run()
    before = path.read_text()
    with pytest.raises(ConfigError, match=says + r".*; name another --json file"):
        Run(path, replace(SETTINGS, **changes))
    assert path.read_text() == before


def test_a_record_of_another_format(path):
    Run(path).run()
    before = path.read_text().replace('"format": 2', '"format": 1')
    path.write_text(before)
    with pytest.raises(ConfigError, match="is a record of another version of snapkv-local"):
        Run(path)
    assert path.read_text() == before


def test_a_record_of_other_cases(path):
    Run(path).run()
    cases = make_cases()
    cases[0] = replace(cases[0], gold=(1, 2, 3, 4))
    with pytest.raises(ConfigError, match="the tokens of case t/100/0/0 differ"):
        Run(path, cases=cases)


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"kind": "bench"}'])
def test_a_file_that_is_no_record(path, text):
    path.write_text(text)
    with pytest.raises(ConfigError, match="name another --json file"):
        Run(path)
    assert path.read_text() == text


def test_needs():
    cases = make_cases()
    needs = Needs.of(SETTINGS, cases, list(POLICIES.values()))
    assert needs == Needs(n_ctx=120 + 6, n_cells=120, decode_cells=6, n_observed=WINDOW)


class Repeating(Recent):
    """Needs what it does not use."""

    spec = "repeating"

    def repeats(self):
        return True


def test_needs_of_a_policy_that_repeats_the_prompt():
    cases = [replace(case, system=(0, 20)) for case in make_cases()]
    needs = Needs.of(SETTINGS, cases, [Recent(), Repeating()])
    assert needs == Needs(n_ctx=220, n_cells=220, decode_cells=6, n_observed=100)
    check_cases(cases, SETTINGS, 220, repeats=True)
    with pytest.raises(ConfigError, match=r"of 220 tokens, which a policy repeats"):
        check_cases(cases, SETTINGS, 219, repeats=True)


def test_the_prompt_is_repeated_where_a_policy_needs_it(path):
    settings = replace(SETTINGS, policies=("recent", "repeating"))
    run = Run(path, settings, policies={"recent": Recent(), "repeating": Repeating()})
    run.run()
    calls = run.engines["f16"].calls
    assert calls.count("prefill") == 3
    assert calls.count("repeat from 0") == calls.count("views") == 3


def test_a_policy_that_cannot_work_on_a_case_is_refused_before_the_model_is_loaded():
    class NeedsQuestion(Recent):
        def n_observed(self, prompt):
            raise ConfigError("policy question", "has no question", "leave it out")

    with pytest.raises(ConfigError, match="has no question"):
        Needs.of(SETTINGS, make_cases(), [NeedsQuestion()])


def test_budgets_that_do_not_hold_what_always_stays():
    cases = [replace(case, system=(0, 9)) for case in make_cases()]
    settings = replace(SETTINGS, protect_system=True)
    says = r"budget 40: .*recent always keeps.* 9 rows.*; give --budgets from 41 on"
    with pytest.raises(ConfigError, match=says):
        Needs.of(settings, cases, list(POLICIES.values()))
    Needs.of(replace(settings, budgets=(41,)), cases, list(POLICIES.values()))


def test_what_policies_see():
    case = replace(make_cases()[0], system=(0, 7), question=(90, 95), sentences=(0, 50))
    view = SETTINGS.view(case)
    assert (view.n_prompt, view.window_size, view.protected) == (120, WINDOW, ())
    assert (view.question, view.sentences) == ((90, 95), (0, 50))
    assert replace(SETTINGS, protect_system=True).view(case).protected == ((0, 7),)


def test_budgets_within_the_window():
    replace(SETTINGS, budgets=(33, 64))
    with pytest.raises(ConfigError, match=r"budget 32: .*window of 32.*; give larger --budgets"):
        replace(SETTINGS, budgets=(64, 32))


def test_prompts_that_do_not_fit():
    cases = make_cases()
    check_cases(cases, SETTINGS, 126)
    with pytest.raises(ConfigError, match=r"t/100/0/0 of 126 tokens.*context of 125"):
        check_cases(cases, SETTINGS, 125)
    with pytest.raises(ConfigError, match="nothing to compress"):
        check_cases(cases, replace(SETTINGS, window_size=99, budgets=(512,)), 1000)
    with pytest.raises(ConfigError, match="give more --cases"):
        check_cases([], SETTINGS, 1000)


def test_cells():
    cells = replace(SETTINGS, kv_types=("q8_0", "f16")).cells()
    assert cells[0] == Cell("full", 0, "f16") and cells[1] == Cell("full", 0, "q8_0")
    assert len(cells) == len({cell.name for cell in cells}) == 14
    assert Cell("recent", 64, "q8_0").name == "recent/64/q8_0"
    assert Cell("recent", 64, "q8_0").against("first") == Cell("first", 64, "q8_0")
    assert Cell("first", 64, "q8_0").against("first") is None
    assert Cell("full", 0, "f16").against("first") is None
