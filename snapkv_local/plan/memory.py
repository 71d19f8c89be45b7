"""Bytes by part: of plain llama.cpp with its full KV cache, and of a prefill by layer groups.

The formulas are those of the code that allocates:

- KV rows: llama-kv-cache.cpp; cells are padded to 256, our compact cache without a GPU to 32
  (cells_needed() in csrc/api/context.cpp). A cache of sliding-window layers has cells for the window and one
  ubatch (llama-kv-cache-iswa.cpp, swa_full off).
- States of recurrent layers: llama-memory-recurrent.cpp, in float32, whatever the type of the KV cache.
  Those that are kept to go back to: csrc/prefill/rows.cpp.
- Staging, hidden state, queries and mask: csrc/staging/staging.cpp and csrc/staging/hidden.cpp.
- Weights: the token embedding stays in host memory; the last N layers go to the GPU, and the output
  matrix with the first of them (llama-model.cpp). Lent weights: csrc/staging/weights.cpp.
- Compute buffers: compute.py. Rows of a selective prefill: selective.py. Recall: recall.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from snapkv_local.config import SnapKVConfig
from snapkv_local.plan import compute
from snapkv_local.plan.kinds import window
from snapkv_local.plan.layers import (
    CPU,
    N_PAD,
    N_PAD_CPU,
    N_UBATCH,
    KvType,
    Part,
    Place,
    cached_layers,
    lends,
    pad,
    row_bytes,
)
from snapkv_local.plan.model import PlannedModel
from snapkv_local.plan.recall import bytes_recall
from snapkv_local.plan.selective import Selection, selection

# Python, NumPy, the command line, libllama and its graphs, and the vocabulary, for which llama.cpp has
# strings and maps: the peak RSS of `plan --measure` less all other parts, with the demo model on
# Linux. Python versions and systems differ by some MB.
PROCESS = 82_000_000
PROCESS_PER_TOKEN = 280

# rows that the mask has more where chunks begin anywhere (csrc/staging/staging.h)
MASK_ALIGNMENT = 8

# tokens that are computed after the vault's, at least (csrc/prefill/rows.cpp)
MIN_NEW = 64
STATE_STEP, MAX_STATES = 4, 12

# bytes that the engine leaves free on the device (csrc/staging/plan.h)
MARGIN = 320 << 20


@dataclass(frozen=True)
class Estimate:
    """What one way of running takes.

    Attributes:
        name: of the way.
        n_prompt: tokens of the prompt.
        kv_type: of the KV cache.
        layer_group: G; 0 for plain llama.cpp.
        n_ubatch: tokens that are computed at once.
        hidden_host: the hidden state is in host memory, beside a GPU.
        parts: by name, at the peak of the prefill.
        decode: the compute buffer that generation takes instead of the prefill's, and kv_group,
            hidden state, mask and lent weights.
        selection: of a selective prefill, the earliest that there can be; None for an exact one.
    """

    name: str
    n_prompt: int
    kv_type: KvType
    layer_group: int
    n_ubatch: int
    hidden_host: bool
    parts: dict[str, Part]
    decode: Part
    selection: Selection | None = None

    @property
    def lasting(self) -> Part:
        """What stays from the load to the end."""
        lasting = (
            *("weights", "kv", "recurrent", "looks", "states", "recall", "vault"),
            *("heads", "draft", "process"),
        )
        return _sum(self.parts[name] for name in lasting if name in self.parts)

    @property
    def peak(self) -> int:
        """Bytes at the highest moment, where the layers are computed."""
        return max(_sum(self.parts.values()).main, self.lasting.main + self.decode.main)

    @property
    def peak_host(self) -> int:
        """Bytes in host memory beside a GPU; 0 without one."""
        return max(_sum(self.parts.values()).host, self.lasting.host + self.decode.host)

    def with_looks(self) -> Estimate:
        """With guesses, before which the states of recurrent layers are put aside."""
        states = self.parts.get("recurrent")
        return self if states is None else replace(self, parts={**self.parts, "looks": states})

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "n_prompt": self.n_prompt,
            "kv_type": self.kv_type,
            "layer_group": self.layer_group,
            "n_ubatch": self.n_ubatch,
            "hidden_host": self.hidden_host,
            "peak": self.peak,
            "peak_host": self.peak_host,
            "parts": {n: {"main": p.main, "host": p.host} for n, p in self.parts.items()},
            "decode_compute": {"main": self.decode.main, "host": self.decode.host},
            "selection": None if self.selection is None else asdict(self.selection),
        }


def _sum(parts: Iterable[Part]) -> Part:
    found = list(parts)
    return Part(sum(part.main for part in found), sum(part.host for part in found))


def plain(
    model: PlannedModel, n_prompt: int, decode_cells: int, kv_type: KvType, place: Place = CPU
) -> Estimate:
    """llama.cpp with its full cache, for a prompt and decode_cells tokens after it."""
    n_cells = pad(n_prompt + decode_cells, N_PAD)
    n_ubatch = min(N_UBATCH, n_cells)
    ordinary = compute.ordinary(model, n_cells, n_ubatch, kv_type, place)
    parts = {
        "weights": _weights(model, place),
        "kv": _kv(model, n_cells, n_cells, n_ubatch, kv_type, place),
        **_recurrent(model, place),
        "compute": ordinary,
        "process": _process(model, place),
    }
    return Estimate(f"plain {kv_type}", n_prompt, kv_type, 0, n_ubatch, False, parts, ordinary)


def compressed(
    model: PlannedModel,
    n_prompt: int,
    config: SnapKVConfig,
    kv_type: KvType,
    place: Place = CPU,
    *,
    group: int,
    n_ubatch: int = N_UBATCH,
    hidden_host: bool = False,
    name: str = "ours",
) -> Estimate:
    """A prefill by groups of `group` layers, and the compact cache that it leaves.

    Args:
        n_prompt: tokens; plain() is what happens where the configuration keeps all of them.
        group: G, at most max_group().
        n_ubatch: tokens that are computed at once.
        hidden_host: beside a GPU, the hidden state in host memory.
    """
    shape = model.shape
    layers = cached_layers(model)
    n_max = pad(n_prompt, N_PAD)
    n_full = pad(n_prompt + config.decode_cells, N_PAD)
    n_kept = config.n_kept(n_prompt)
    # with min_coverage there are cells for the most rows
    n_most = max(config.n_kept(n_full), min(config.most_rows() or 0, n_full))
    wanted = pad(n_most + config.decode_cells, N_PAD if place.gpu else N_PAD_CPU)
    n_cells = min(n_full, wanted)
    lent = lends(model, place)
    ordinary = compute.ordinary(model, n_cells, min(N_UBATCH, n_full), kv_type, place)
    parts = {
        "weights": _weights(model, place),
        "kv": _kv(model, n_cells, n_full, N_UBATCH, kv_type, place),
        **_recurrent(model, place),
    }
    parts |= _kept_states(model, n_prompt, config, place)
    keeps_all = config.vault != "off" and n_prompt > config.window_size
    if n_kept >= n_prompt and not keeps_all:
        parts |= {"compute": ordinary, "process": _process(model, place)}
        return Estimate(name, n_prompt, kv_type, 0, N_UBATCH, False, parts, ordinary)

    n_rows: Counter[int] = Counter(row_bytes(model, il, kv_type) for il in layers)
    kv_group = sum(min(group, n) * row * n_max for row, n in n_rows.items())
    n_q = max(model.layers[il].n_voting for il in layers)
    queries = 4 * n_q * config.window_size * group
    state = 4 * model.n_hidden * n_prompt if group < len(layers) else 0
    slots = 2 * 4 * model.n_hidden * n_ubatch if state and hidden_host else 0
    rows = max(n_ubatch, config.window_size)
    rows += 0 if n_ubatch % MASK_ALIGNMENT == 0 else MASK_ALIGNMENT
    mask = 2 * rows * (n_max + pad(rows, N_PAD) + N_PAD)
    parts |= {
        "kv_group": Part(kv_group),
        "hidden": Part(slots + queries, state) if hidden_host else Part(state + queries),
        "mask": Part(mask),
        "compute": compute.of_group(
            model, n_prompt, config, kv_type, n_ubatch, place, group, hidden_host
        ),
    }
    if lent:
        n_host = shape.n_layer - place.n_resident(shape.n_layer)
        host = model.bytes_layers[:n_host]
        parts["weights_lent"] = Part(max(sum(host[i : i + group]) for i in range(0, n_host, group)))
    if config.vault == "ram":
        vault = _vault(model, n_prompt, config, kv_type)
        parts["vault"] = Part(0, vault) if place.gpu else Part(vault)
    if config.recall and n_kept < n_prompt:
        recall = bytes_recall(model, n_prompt, config)
        parts["recall"] = Part(0, recall) if place.gpu else Part(recall)
    parts["process"] = _process(model, place)
    chosen = selection(model, n_prompt, config, group)
    return Estimate(name, n_prompt, kv_type, group, n_ubatch, hidden_host, parts, ordinary, chosen)


def engine_estimate(
    model: PlannedModel,
    n_prompt: int,
    config: SnapKVConfig,
    kv_type: KvType,
    group: int,
    n_ubatch: int,
    hidden_host: bool,
) -> int:
    """Bytes on the device by which the engine chooses its plan (csrc/staging/plan.cpp); on the safe side."""
    shape, layers = model.shape, cached_layers(model)
    n_max = pad(n_prompt, N_PAD)
    layer = sum(row_bytes(model, il, kv_type) for il in layers) * n_max // len(layers)
    layer += 4 * max(model.layers[il].n_voting for il in layers) * config.window_size
    hidden = 0
    if group < len(layers):
        hidden = 4 * model.n_hidden * (2 * n_ubatch if hidden_host else n_prompt)
    mask_row = 2 * (n_max + N_UBATCH + 2 * N_PAD)
    compute_row = 4 * max(
        max(3 * each.n_ff + 2 * each.n_expert_used * shape.n_embd, each.n_mix)
        + 4 * (each.n_q + shape.n_embd)
        for each in model.layers
    )
    state = max(each.bytes_state for each in model.layers)
    votes = compute.votes(model, n_prompt, config, fused=config.ops == "fused")
    rows = n_ubatch * (mask_row + compute_row)
    return group * layer + hidden + rows + state + votes + MARGIN


def _vault(model: PlannedModel, n_prompt: int, config: SnapKVConfig, kv_type: KvType) -> int:
    """Bytes of all the prompt's rows and of the window's queries (csrc/vault/vault.cpp)."""
    shape, layers = model.shape, cached_layers(model)
    n_tail = min(n_prompt, window(shape) + max(config.window_size, MIN_NEW))
    rows = {il: n_tail if layer.is_swa else n_prompt for il, layer in enumerate(model.layers)}
    queries = sum(4 * model.layers[il].n_voting * config.window_size for il in layers)
    return queries + sum(n * row_bytes(model, il, kv_type) for il, n in rows.items())


def _weights(model: PlannedModel, place: Place) -> Part:
    if not place.gpu or place.n_gpu_layers == 0:
        total = model.bytes_weights
        return Part(0, total) if place.gpu else Part(total)
    n_host = model.shape.n_layer - place.n_resident(model.shape.n_layer)
    host = model.bytes_input + sum(model.bytes_layers[:n_host])
    return Part(sum(model.bytes_layers[n_host:]) + model.bytes_output, host)


def _kv(
    model: PlannedModel, n_cells: int, n_full: int, n_ubatch: int, kv_type: KvType, place: Place
) -> Part:
    """n_cells: of ordinary layers; those of sliding-window layers follow from n_full."""
    n_swa = pad(min(n_full, window(model.shape) + n_ubatch), N_PAD)
    layers = [
        row_bytes(model, il, kv_type) * (n_swa if layer.is_swa else n_cells)
        for il, layer in enumerate(model.layers)
    ]
    n_host = len(layers) - place.n_resident(len(layers)) if place.gpu else 0
    return Part(sum(layers[n_host:]), sum(layers[:n_host]))


def _recurrent(model: PlannedModel, place: Place) -> dict[str, Part]:
    """States of one sequence, where the layers are; no part without any."""
    states = [layer.bytes_state for layer in model.layers]
    if not any(states):
        return {}
    n_host = len(states) - place.n_resident(len(states)) if place.gpu else 0
    return {"recurrent": Part(sum(states[n_host:]), sum(states[:n_host]))}


def _kept_states(
    model: PlannedModel, n_prompt: int, config: SnapKVConfig, place: Place
) -> dict[str, Part]:
    """States in host memory, behind the prompt and for the vault before its end; turns add more."""
    of_one = sum(layer.bytes_state for layer in model.layers)
    n, distance = 1, max(config.window_size, MIN_NEW)
    while config.vault != "off" and distance < n_prompt:
        n, distance = n + 1, STATE_STEP * distance
    total = min(n, MAX_STATES) * of_one
    return {"states": Part(0, total) if place.gpu else Part(total)} if of_one else {}


def _process(model: PlannedModel, place: Place) -> Part:
    host = PROCESS + PROCESS_PER_TOKEN * model.shape.n_vocab
    return Part(place.context, host) if place.gpu else Part(host)
