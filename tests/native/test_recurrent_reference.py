"""Recurrent layers of llama.cpp, and their states after our prefill, against float64.

The models have five layers, of which three are recurrent. The others' results are made zero, so that the
logits are the output matrix times what the recurrent layers have added to the embedding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter
from recurrent_reference import Array, delta_net, mamba2, rms_norm

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.bench import metadata, vocabulary
from snapkv_local.bench.blueprint import Blueprint, Recurrent
from snapkv_local.bench.tensors import tensors

import llama_cpp  # isort: skip

pytestmark = pytest.mark.native

N_PROMPT, N_UBATCH = 300, 64
RECURRENT = (0, 2, 4)

# The share of the largest element by which one may differ. A float32 operation is wrong by 6e-8 of its
# result. Sums over matrices of 64 to 128 elements and over 300 tokens, in three layers behind each other,
# each with norms that carry the error on, make up to 1e-6 of that. Mistakes are a thousand times as large
# (the last test).
TOLERANCE = 1e-5

DELTA = Blueprint(
    "qwen35", 5, 64, 64, 4, 2, 32, 300, 10_000.0, eps=1e-6, qk_norm=True, gated=True, mixers="ra",
    recurrent=Recurrent("delta", 4, 128, 32, 2, 4),
    extra={"full_attention_interval": 2, "rope.dimension_sections": [4, 4, 4, 0]},
)  # fmt: skip
MAMBA = Blueprint(
    "granitehybrid", 5, 64, 64, 4, 2, 32, 300, 10_000.0, mixers="ra",
    recurrent=Recurrent("mamba2", 4, 128, 16, 2, 8), extra={"rope.scaling.finetuned": False},
)  # fmt: skip


@dataclass
class Made:
    """A model: its file, its shape, and its weights by name."""

    path: Path
    shape: Blueprint
    weights: dict[str, np.ndarray[Any, np.dtype[np.float32]]]

    def layer(self, il: int) -> dict[str, Array]:
        """Weights of a layer, in float64, by the rest of their names."""
        prefix = f"blk.{il}."
        return {
            name.removeprefix(prefix): weight.astype(np.float64)
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }


def make(shape: Blueprint, path: Path) -> Made:
    rng = np.random.default_rng(7)
    writer = GGUFWriter(path, shape.arch)
    metadata.add_shape(writer, shape)
    vocabulary.add_made_up(writer, shape.n_vocab)
    writer.add_vocab_size(shape.n_vocab)
    weights = {}
    for spec in tensors(shape, shape.n_vocab):
        weight = rng.standard_normal(spec.shape) / np.sqrt(spec.shape[-1])
        if spec.kind == "ones":
            weight = rng.uniform(0.5, 1.5, spec.shape)
        elif spec.kind == "decay":
            weight = -rng.uniform(0.2, 2, spec.shape)
        elif spec.kind == "step":
            weight = rng.uniform(-4, 0, spec.shape)
        elif spec.kind == "zeros":
            weight = rng.standard_normal(spec.shape) / 2
        if spec.name.endswith(("attn_output.weight", "ffn_down.weight")):
            weight = np.zeros(spec.shape)
        weights[spec.name] = weight.astype(np.float32)
        writer.add_tensor(spec.name, weights[spec.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Made(path, shape, weights)


@pytest.fixture(scope="module", params=[DELTA, MAMBA], ids=["DeltaNet", "Mamba 2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(request.param, tmp_path_factory.mktemp("recurrent") / "model.gguf")


@dataclass
class Result:
    """What a prompt leaves: states and convolution inputs of the recurrent layers, and the last logits."""

    states: list[Array]
    tails: list[Array]
    logits: Array


def reference(made: Made, tokens: list[int]) -> Result:
    shape = made.shape
    assert shape.recurrent is not None
    mix = {"delta": delta_net, "mamba2": mamba2}[shape.recurrent.kind]
    x = made.weights["token_embd.weight"].astype(np.float64)[tokens]
    found = Result([], [], x)
    for il in RECURRENT:
        w = made.layer(il)
        out, tail, state = mix(
            rms_norm(x, w["attn_norm.weight"], shape.eps), w, shape.recurrent, shape.eps
        )
        x = x + out
        found.states.append(state)
        found.tails.append(tail)
    norm = made.weights["output_norm.weight"].astype(np.float64)
    output = made.weights["output.weight"].astype(np.float64)
    found.logits = rms_norm(x[-1], norm, shape.eps) @ output.T
    return found


def of_context(llm: Llama, shape: Blueprint) -> Result:
    """From the saved state of the sequence, whose last parts are R of all recurrent layers, then S."""
    partial = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY
    ctx = llm._ctx.ctx
    n = llama_cpp.llama_state_seq_get_size_ext(ctx, 0, partial)
    buffer = (ctypes.c_uint8 * n)()
    assert llama_cpp.llama_state_seq_get_data_ext(ctx, buffer, n, 0, partial) == n
    r = shape.recurrent
    assert r is not None
    n_head_bytes = 4 + 8  # type, and bytes of a row
    shapes = {
        "tails": (r.n_channels, r.n_conv - 1),
        "states": (r.n_head, r.n_inner // r.n_head, r.n_state),
    }
    end, parts = n, {}
    for name in ("states", "tails"):
        found = []
        for _ in RECURRENT:
            n_bytes = 4 * int(np.prod(shapes[name]))
            part = np.frombuffer(buffer, np.float32, n_bytes // 4, end - n_bytes)
            found.append(part.astype(np.float64).reshape(shapes[name]))
            end -= n_bytes + n_head_bytes
        parts[name] = found[::-1]
    return Result(parts["states"], parts["tails"], llm._logits(1)[0].astype(np.float64))


def load(made: Made, snapkv: SnapKVConfig | None) -> Llama:
    return Llama(
        str(made.path), snapkv=snapkv, flash_attn=True, n_ctx=512, n_batch=N_UBATCH, n_ubatch=N_UBATCH,
        n_threads=1, n_threads_batch=1, verbose=False,
    )  # fmt: skip


def plain(made: Made, tokens: list[int]) -> Result:
    llm = load(made, None)
    try:
        llm.eval(tokens)
        return of_context(llm, made.shape)
    finally:
        llm.close()


def ours(made: Made, tokens: list[int], group: int) -> Result:
    llm = load(made, SnapKVConfig(budget=48, window_size=8, decode_cells=32, layer_group=group))
    try:
        stats = llm.prefill(tokens)
        assert (stats.n_kept, stats.layer_group) == (48, group)
        return of_context(llm, made.shape)
    finally:
        llm.close()


def error(found: Array, wanted: Array) -> float:
    """Of the largest element."""
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def errors(found: Result, wanted: Result) -> list[float]:
    pairs = [
        *zip(found.states, wanted.states, strict=True),
        *zip(found.tails, wanted.tails, strict=True),
    ]
    return [error(a, b) for a, b in [*pairs, (found.logits, wanted.logits)]]


PROMPT = np.random.default_rng(3).integers(0, 256, N_PROMPT).tolist()
WAYS: dict[str, Callable[[Made, list[int]], Result]] = {
    "llama.cpp": plain,
    "G=1": lambda made, tokens: ours(made, tokens, 1),
    "G=2": lambda made, tokens: ours(made, tokens, 2),
}


@pytest.mark.parametrize("way", WAYS)
def test_states_and_logits_are_those_of_float64(made: Made, way: str) -> None:
    assert max(errors(WAYS[way](made, PROMPT), reference(made, PROMPT))) < TOLERANCE


def test_the_tolerance_tells_mistakes(made: Made) -> None:
    right = reference(made, PROMPT)
    last = reference(made, PROMPT[:-1])
    decayed = dict(made.weights)
    decayed |= {name: decayed[name][::-1] for name in decayed if name.endswith("ssm_a")}
    heads = reference(Made(made.path, made.shape, decayed), PROMPT)  # another head's decay
    for wrong in (last, heads):
        assert (
            min(error(a, b) for a, b in zip(wrong.states, right.states, strict=True))
            > 100 * TOLERANCE
        )
