"""Predictions beside what a real prefill takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from snapkv_local import hardware
from snapkv_local.llama.load_options import LoadOptions
from snapkv_local.plan.fit import Task
from snapkv_local.plan.layers import N_PAD, N_UBATCH, pad, row_bytes
from snapkv_local.plan.memory import Estimate, compressed

TOLERANCE = 0.05
LARGE = 64 << 20  # bytes; smaller parts are shown, and may miss


@dataclass(frozen=True)
class Comparison:
    """One part.

    Attributes:
        part: its name.
        predicted: bytes.
        measured: bytes.
    """

    part: str
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Relative to the measured bytes; 0 where both are 0."""
        if self.measured == 0:
            return 0.0 if self.predicted == 0 else float("inf")
        return self.predicted / self.measured - 1

    @property
    def misses(self) -> bool:
        """Whether a large part is off by more than the tolerance.

        The process's own memory is what the peak leaves, and is judged with the peak.
        """
        if self.part == "process":
            return False
        return max(self.predicted, self.measured) > LARGE and abs(self.error) > TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return {**asdict(self), "error": self.error, "misses": self.misses}


@dataclass(frozen=True)
class Measurement:
    """A prefill that was predicted.

    Attributes:
        estimate: of the plan that the engine chose.
        predicted_group: G that was foreseen.
        comparisons: by part.
        stats: PrefillStats as a dictionary.
        peak_rss: bytes of the process at its highest.
    """

    estimate: Estimate
    predicted_group: int
    comparisons: list[Comparison]
    stats: dict[str, Any]
    peak_rss: int

    @property
    def misses(self) -> list[Comparison]:
        """Large parts that are off."""
        return [c for c in self.comparisons if c.misses]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "parts": [c.to_dict() for c in self.comparisons],
            "predicted_layer_group": self.predicted_group,
            "prefill": self.stats,
            "peak_rss": self.peak_rss,
            "ok": not self.misses,
        }


def measure(
    task: Task,
    n_prompt: int,
    n_gpu_layers: int,
    n_threads: int,
    progress: Callable[[int, int], object] | None = None,
) -> Measurement:
    """Load the model, prefill random tokens, and compare.

    The peak of the process counts only on a CPU: beside a GPU, drivers take host memory of their
    own. Layers of a GPU are compared all the same.

    Raises:
        OutOfMemoryError, UnsupportedModelError, NativeError: from the engine.
    """
    # only now: it loads the native library
    from snapkv_local.llama.llama import Llama  # isort: skip

    import llama_cpp
    import numpy as np

    loading = LoadOptions(
        ctx=n_prompt + task.config.decode_cells,
        kv_type=task.kv_type,
        gpu_layers=n_gpu_layers,
        threads=n_threads,
    )
    llm = Llama(
        str(task.model.path),
        snapkv=task.config,
        n_batch=N_UBATCH,
        n_ubatch=N_UBATCH,
        **loading.arguments(),
    )
    try:
        n_weights = int(llama_cpp.llama_model_size(llm.model))
        # no token of the vocabulary's end, where those for control often are
        tokens = np.random.default_rng(1).integers(0, llm.n_vocab() * 3 // 4, n_prompt)
        stats = llm.prefill(tokens.tolist(), progress)
        peak = hardware.peak_rss()
    finally:
        llm.close()

    foreseen = task.auto(n_prompt)
    estimate = foreseen
    if stats.layer_group > 0:
        estimate = compressed(
            task.model, n_prompt, task.config, task.kv_type, task.place,
            group=stats.layer_group, n_ubatch=stats.n_ubatch,
            hidden_host=stats.bytes_hidden_host > 0, name=foreseen.name,
        )  # fmt: skip
    measured = {
        "weights": n_weights,
        "kv": stats.bytes_kv - stats.bytes_recurrent,
        "recurrent": stats.bytes_recurrent,
        "kv_group": stats.bytes_kv_group,
        "hidden": stats.bytes_hidden,
        "mask": stats.bytes_mask,
        "compute": stats.bytes_compute,
        "weights_lent": stats.bytes_weights_lent,
        "vault": stats.bytes_vault,
        "states": stats.bytes_state,
    }
    predicted = {name: part.total for name, part in estimate.parts.items()}
    predicted["weights"] = task.model.bytes_weights
    if estimate.layer_group == 0:
        measured.pop("compute")  # reserved for logits that nobody asks for
    found = [
        Comparison(name, predicted.get(name, 0), n_bytes)
        for name, n_bytes in measured.items()
        if n_bytes or predicted.get(name, 0)
    ]
    found.append(Comparison("full KV, not taken", _full(task, n_prompt), stats.bytes_kv_full))
    if not task.place.gpu:
        others = sum(c.measured for c in found[:-1])
        found.append(Comparison("process", predicted["process"], peak - others))
        found.append(Comparison("peak of the process", estimate.peak, peak))
    return Measurement(estimate, foreseen.layer_group, found, stats.to_dict(), peak)


def _full(task: Task, n_prompt: int) -> int:
    """bytes_kv_full: cells for the prompt, without room."""
    parts = task.plain(task.kv_type, n_prompt).parts
    full = sum(parts[name].total for name in ("kv", "recurrent") if name in parts)
    model = task.model
    spare = pad(n_prompt + task.config.decode_cells, N_PAD) - pad(n_prompt, N_PAD)
    return full - spare * sum(
        row_bytes(model, il, task.kv_type)
        for il in range(model.shape.n_layer)
        if not model.layers[il].is_swa
    )
