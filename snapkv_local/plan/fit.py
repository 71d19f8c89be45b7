"""What fits a memory: which G, how long a prompt, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from snapkv_local.config import SnapKVConfig
from snapkv_local.plan.draft import beside, cache_of_heads, with_heads
from snapkv_local.plan.layers import (
    KV_TYPES,
    N_UBATCH,
    KvType,
    Place,
    cached_layers,
    max_group,
)
from snapkv_local.plan.memory import Estimate, compressed, engine_estimate, plain
from snapkv_local.plan.model import PlannedModel

MAX_PROMPT = 1 << 26  # tokens; the search ends here
_MIN_CHUNK = 64  # MIN_CHUNK of csrc/staging/plan.cpp
_STEP = 256  # tokens
_SHARE = 0.25  # of the memory that is left, for further conversations

_Plan = tuple[int, int, bool]  # G, n_ubatch, hidden state on the host


@dataclass(frozen=True)
class Task:
    """What is planned.

    Attributes:
        model: of read_model().
        config: of the compression; decode_cells holds for plain llama.cpp as well.
        kv_type: of our cache.
        place: where layers are computed.
        memory: bytes there are where the layers are computed.
        draft: a smaller model, that drafts tokens; None for none.
        lookup: tokens are guessed from the conversation itself.
        heads: they are guessed by the model's prediction heads.
    """

    model: PlannedModel
    config: SnapKVConfig
    kv_type: KvType
    place: Place
    memory: int
    draft: PlannedModel | None = None
    lookup: bool = False
    heads: bool = False

    def plain(self, kv_type: KvType, n_prompt: int) -> Estimate:
        """llama.cpp's full cache."""
        n_cells = self.config.decode_cells
        found = plain(self.model, n_prompt, n_cells, kv_type, self.place)
        if self.heads:  # whose cache has the whole prompt there
            found = with_heads(found, self.model, n_prompt + n_cells)
        if self.draft is None:
            return found
        return beside(found, plain(self.draft, n_prompt, n_cells, kv_type, self._place_of_draft()))

    def group_of_one(self, n_prompt: int) -> Estimate:
        """G = 1, the hidden state where the layers are, chunks of a ubatch."""
        return self._ours("ours G=1", n_prompt, 1, N_UBATCH, False)

    def auto(self, n_prompt: int) -> Estimate:
        """The plan that the engine takes; the smallest if none fits."""
        estimates = []
        for plan in self._plans(n_prompt):
            estimate = self._ours("ours auto", n_prompt, *plan)
            if not self.place.gpu:
                return estimate  # the engine has no other
            if estimate.lasting.main + self._wanted(n_prompt, plan) <= self.memory and self.fits(
                estimate
            ):
                return estimate
            estimates.append(estimate)
        return min(estimates, key=lambda estimate: estimate.peak)

    def ways(self) -> dict[str, Callable[[int], Estimate]]:
        """All ways of running that are compared; each takes a prompt's length."""
        found: dict[str, Callable[[int], Estimate]] = {}
        for kv_type in KV_TYPES:
            found[f"plain {kv_type}"] = lambda n, kv_type=kv_type: self.plain(kv_type, n)  # type: ignore[misc]
        return {**found, "ours G=1": self.group_of_one, "ours auto": self.auto}

    def fits(self, estimate: Estimate) -> bool:
        """Whether the memory holds it."""
        return estimate.peak <= self.memory

    def _ours(self, name: str, n: int, group: int, n_ubatch: int, host: bool) -> Estimate:
        how: dict[str, Any] = {"n_ubatch": n_ubatch, "hidden_host": host, "name": name}
        found = compressed(self.model, n, self.config, self.kv_type, self.place, group=group, **how)
        if self.draft is None:
            found = found.with_looks() if self.lookup or self.heads else found
            return with_heads(found, self.model) if self.heads else found
        return beside(found.with_looks(), self._draft(self.draft, n, **how))

    def of_conversation(self, estimate: Estimate) -> int:
        """Bytes that each further conversation takes, of this length."""
        each = _of_sequence(estimate)
        if self.draft is not None:
            each += _of_sequence(self._draft(self.draft, estimate.n_prompt))
        each += cache_of_heads(self.model, self.kv_type) if self.heads else 0
        vault = estimate.parts.get("vault")
        if vault is not None and not self.place.gpu:
            limit = self.config.vault_limit
            each += vault.main if limit is None else min(vault.main, limit)
        return each

    def _draft(self, model: PlannedModel, n: int, **how: Any) -> Estimate:
        config = replace(self.config, vault="off", recall=False, layer_group=1)
        place = self._place_of_draft()
        return compressed(model, n, config, self.kv_type, place, group=1, **how).with_looks()

    def _place_of_draft(self) -> Place:
        return replace(self.place, n_gpu_layers=None)

    def _wanted(self, n_prompt: int, plan: _Plan) -> int:
        return engine_estimate(self.model, n_prompt, self.config, self.kv_type, *plan)

    def _plans(self, n_prompt: int) -> Iterator[_Plan]:
        """Plans in the order of csrc/staging/plan.cpp."""
        c, largest = self.config, max_group(self.model, self.place)
        n_layers = len(cached_layers(self.model))
        n_ubatch = min(N_UBATCH if c.n_ubatch == "auto" else int(c.n_ubatch), n_prompt)
        group = smaller = 1 if c.layer_group == "auto" else min(int(c.layer_group), largest)
        may_be_whole = c.hidden_state != "host" and c.prefill == "exact"
        if c.layer_group == "auto" and may_be_whole and largest >= n_layers:
            whole, single = (self._wanted(n_prompt, (g, n_ubatch, False)) for g in (n_layers, 1))
            group = n_layers if whole <= single else 1
        if not self.place.gpu:
            yield group, n_ubatch, False
            return
        while True:
            if c.hidden_state != "host":
                yield group, n_ubatch, False
            if c.hidden_state == "host" or (c.hidden_state == "auto" and smaller < n_layers):
                yield smaller, n_ubatch, True
            if c.n_ubatch != "auto" or n_ubatch <= _MIN_CHUNK:
                return
            n_ubatch = max(n_ubatch // 2, _MIN_CHUNK)


def conversations(task: Task, n_prompt: int, most: int) -> tuple[int, int]:
    """How many conversations a context may have, and bytes that each takes.

    Those beside the first take no more than a share of the memory that its prefill leaves.
    """
    estimate = task.auto(n_prompt)
    each = task.of_conversation(estimate)
    left = max(0, task.memory - estimate.peak)
    return max(1, min(most, 1 + int(_SHARE * left) // max(1, each))), each


def _of_sequence(estimate: Estimate) -> int:
    names = ("kv", "recurrent", "looks", "states")
    return sum(estimate.parts[name].main for name in names if name in estimate.parts)


def largest_prompt(task: Task, way: Callable[[int], Estimate], most: int = MAX_PROMPT) -> int:
    """Tokens of the longest prompt that fits: `most`, or a multiple of 256; 0 if none does."""
    if most < MAX_PROMPT and task.fits(way(most)):
        return most
    if not task.fits(way(_STEP)):
        return 0
    low, high = 1, MAX_PROMPT // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        if task.fits(way(middle * _STEP)):
            low = middle
        else:
            high = middle - 1
    return min(low * _STEP, most)


@dataclass(frozen=True)
class Change:
    """Something that makes a prompt fit.

    Attributes:
        option: of the command line.
        peak: bytes that it takes then.
        note: what it costs.
    """

    option: str
    peak: int
    note: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {"option": self.option, "peak": self.peak, "note": self.note}


def changes(task: Task, n_prompt: int) -> list[Change]:
    """What makes the prompt fit where "ours auto" does not; each alone, the gentlest first."""
    found: list[Change] = []

    def attempt(option: str, changed: Task, note: str) -> bool:
        estimate = changed.auto(n_prompt)
        if changed.fits(estimate):
            found.append(Change(option, estimate.peak, note))
        return changed.fits(estimate)

    c = task.config
    if c.layer_group not in ("auto", 1):
        attempt("--layer-group 1", replace(task, config=replace(c, layer_group=1)), "")
    if task.place.gpu and c.hidden_state == "device":
        attempt(
            "--hidden-state host",
            replace(task, config=replace(c, hidden_state="host")),
            "needs host memory",
        )
    for kv_type, note in (("q8_0", "KV in 8.5 bits"), ("q4_0", "KV in 4.5 bits, less exact")):
        if KV_TYPES[kv_type][0] / KV_TYPES[kv_type][1] < (  # type: ignore[index]
            KV_TYPES[task.kv_type][0] / KV_TYPES[task.kv_type][1]
        ):
            attempt(f"--kv-type {kv_type}", replace(task, kv_type=kv_type), note)  # type: ignore[arg-type]
    budget = c.n_kept(n_prompt) // 2
    while budget > max(c.window_size + c.n_sink, 128):
        smaller = replace(c, budget=budget, keep_ratio=None)
        if attempt(f"--budget {budget}", replace(task, config=smaller), "keeps fewer rows"):
            break
        budget //= 2
    if task.place.gpu:
        n_layer = task.model.shape.n_layer
        start = task.place.n_gpu_layers
        for n in range((n_layer if start is None else min(start, n_layer + 1)) - 1, 1, -1):
            if attempt(
                f"--gpu-layers {n}",
                replace(task, place=replace(task.place, n_gpu_layers=n)),
                "other weights stay in host memory: decoding gets slow",
            ):
                break
    return found
