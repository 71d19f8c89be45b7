"""What tune says of selective prefills and recall: which are tried, what they gain and lose, who is named."""

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from snapkv_local import SnapKVConfig
from snapkv_local.errors import ConfigError
from snapkv_local.eval.case import Case
from snapkv_local.policies.exact import Exact
from snapkv_local.policies.recall import Recall
from snapkv_local.policies.selective import Selective
from snapkv_local.tune.choose import Setting
from snapkv_local.tune.documents import Document
from snapkv_local.tune.terminal import show
from snapkv_local.tune.ways import Ways, ways_of

N_PROMPT, BUDGET = 4000, 128
N_VOCAB = 64


class FakeEngine:
    """Logits move away from the full cache's by what a prefill's settings say; so does its time."""

    def __init__(self, refuses=()):
        self.rows = np.random.default_rng(1).normal(size=(N_VOCAB, N_VOCAB)).astype(np.float32)
        self.refuses = refuses
        self.cpu = 0.0
        self.calls = []

    def prefill(self, tokens):
        self.cpu += 7.0
        self.moved = 0.0
        self.calls.append("full")

    def prefill_with(self, tokens, budget, settings, view):
        kind = "recall" if settings.get("recall") else settings.get("prefill", "exact")
        if kind in self.refuses:
            raise ConfigError("the new settings", "not with this model", "leave them out")
        config = SnapKVConfig(budget=budget, **{"vault": "off", **settings})
        assert config.window_size == view.window_size == 32
        self.calls.append(kind)
        share, depth = config.select_share, config.select_depth
        self.cpu += {
            "exact": 10.0,
            "selective": 10 * (depth + (1 - depth) * share),
            "recall": 12.0,
        }[kind]
        self.moved = {"exact": 0.1, "selective": 0.1 + 0.05 / share, "recall": 0.05}[kind]
        return SimpleNamespace(layer_work=0.5 if kind == "selective" else 1.0)

    def rewind(self):
        self.calls.append("rewind")

    def logits_for(self, tokens, last):
        rows = np.array(self.rows[[t % N_VOCAB for t in tokens[-last:]]])
        rows[:, 0] += 10 * self.moved
        return rows


def documents(name, n):
    rng = np.random.default_rng(2)

    def case(i, j):
        tokens = tuple(rng.integers(0, N_VOCAB, N_PROMPT).tolist())
        return Case(
            f"{name}/{i}/{j}", "question", f"{name}{i}", N_PROMPT, tokens, (1, 2), (3, 4, 5)
        )

    return tuple(Document(f"{name}{i}", tuple(case(i, j) for j in range(3))) for i in range(n))


def make(engine, **changes):
    given = {"target": 1.0, "seconds": 1e9}
    return Ways(
        engine, changes.pop("setting", Setting()), BUDGET,
        tuning=documents("t", 2), held_out=documents("h", 2), progress=lambda *_: None,
        cpu_clock=lambda: engine.cpu, **{**given, **changes},
    )  # fmt: skip


def test_what_is_tried_has_the_settings_that_were_found():
    setting = Setting(kernel_size=13, pooling="max", n_sink=4, observation=16)
    ways = ways_of(setting, BUDGET, N_PROMPT)
    assert isinstance(ways[0], Exact) and {type(w) for w in ways} == {Exact, Selective, Recall}
    for way in ways:
        config = SnapKVConfig(budget=BUDGET, **way.settings())
        assert (config.kernel_size, config.pooling, config.n_sink) == (13, "max", 4)
        assert config.observation == 16
    assert replace(Selective(), **{k: getattr(ways[0], k) for k in vars(ways[0])}) in ways


@pytest.mark.parametrize(
    ("n_prompt", "n"), [(4000, 7), (1200, 4), (300, 0)], ids=["long", "middling", "short"]
)
def test_a_short_prompt_has_few_rows_to_leave_out(n_prompt, n):
    ways = ways_of(Setting(), BUDGET, n_prompt)
    assert sum(isinstance(way, Selective) for way in ways) == n
    assert sum(isinstance(way, Recall) for way in ways) == 2


def test_nothing_is_tried_where_it_makes_no_sense():
    assert ways_of(Setting(by="value"), BUDGET, N_PROMPT) == []
    assert ways_of(Setting(), N_PROMPT, N_PROMPT) == []


def test_the_fastest_within_the_target_and_the_closest_recall_are_held_out():
    engine = FakeEngine()
    ways = make(engine)
    ways.run()
    report = ways.report()
    tried = {row["policy"]: row for row in report["tuning"]}
    assert len(tried) == len(ways_of(Setting(), BUDGET, N_PROMPT))
    within = [r for r in report["tuning"] if r["settings"].get("prefill") and r["kl"] <= 1.0]
    chosen = [r for r in report["held_out"] if r["is_chosen"]]
    assert [r["policy"].partition(":")[0] for r in chosen] == ["selective", "recall"]
    assert chosen[0]["policy"] == max(within, key=lambda r: r["speed"])["policy"]
    exact, shipped = report["held_out"][0], report["held_out"][1]
    assert exact["policy"] == "exact" and exact["speed"] == 1.0 and exact["settings"] == {}
    assert shipped["policy"] == "selective"
    assert shipped["speed"] == pytest.approx(10 / (10 * (0.375 + 0.625 * 0.2)))
    assert {row["cases"] for row in report["held_out"]} == {4}
    assert chosen[1]["speed"] < 1 and chosen[1]["kl"] < exact["kl"] < shipped["kl"]
    SnapKVConfig(budget=BUDGET, **chosen[0]["settings"])

    out = io.StringIO()
    Console(file=out, width=1000).print(show({**EMPTY, "ways": report}))
    assert "--prefill selective" in out.getvalue() and "--recall --recall-every" in out.getvalue()
    assert "Not exact, and not in the profile; held out: 4 cases" in out.getvalue()


def test_none_is_chosen_beyond_the_target():
    ways = make(FakeEngine(), target=1e-9)
    ways.run()
    assert {row["policy"].partition(":")[0] for row in ways.report()["held_out"]} == {
        "exact", "selective", "recall",
    }  # fmt: skip
    assert not any(isinstance(way, Selective) for way in ways.chosen)


def test_what_the_engine_refuses_is_named():
    engine = FakeEngine(refuses=("selective",))
    ways = make(engine)
    ways.run()
    report = ways.report()
    assert list(report["refused"]) == ["selective"]
    assert "not with this model" in report["refused"]["selective"]
    assert {row["policy"].partition(":")[0] for row in report["held_out"]} == {"exact", "recall"}


def test_without_time_the_reason_is_said():
    clock = iter(range(0, 10_000, 100))
    ways = make(FakeEngine(), seconds=50.0, clock=lambda: next(clock))
    ways.run()
    report = ways.report()
    assert report["held_out"] == [] and "--minutes" in report["reason"]
    out = io.StringIO()
    Console(file=out, width=1000).print(show({**EMPTY, "ways": report}))
    assert "are not measured: there was no time left" in out.getvalue()


EMPTY = {"curve": [], "best": {}, "target_kl": 0.1, "settings": None, "held_out_scores": []}
