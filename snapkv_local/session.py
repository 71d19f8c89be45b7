"""A live conversation in a file, to go on with in another process."""

from __future__ import annotations

import ctypes
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local import native  # isort: skip

import llama_cpp
import numpy as np

from snapkv_local import fingerprint, sealed, vault
from snapkv_local.document import blocks_of
from snapkv_local.errors import DocumentError, NoRoomError

if TYPE_CHECKING:
    from snapkv_local.llama import Llama

KIND = "session"


def save(llm: Llama, path: str | Path) -> int:
    """Llama.save_session()."""
    context = llm._context("save_session")
    n_bytes = llm.bytes_of_sequence()
    state = np.empty(n_bytes, np.uint8)
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    if llama_cpp.llama_state_seq_get_data(context.ctx, pointer, n_bytes, 0) != n_bytes:
        native.fail("llama_state_seq_get_data")
    tokens = np.array(llm._input_ids, np.int32)
    # without them the last token would be evaluated again, with the compact cache before it
    logits = np.empty(0, np.float32)
    if llm.n_tokens > 0 and not llm._requires_eval:
        logits = np.array(llm._logits(1)[0])
    parts = vault.segments(context)
    header = {
        "model": asdict(fingerprint.of(llm)),
        "n_prompt": llm.n_prompt,
        "seed": int(llm._seed),
        "n_swa_rows": parts[-1].n_swa_rows if parts else 0,
    }
    blocks = [
        sealed.Block("tokens", np.int32, tokens.shape, [tokens]),
        sealed.Block("state", np.uint8, state.shape, [state]),
        sealed.Block("logits", np.float32, logits.shape, [logits]),
    ]
    if parts:
        held = np.concatenate([part.tokens for part in parts])
        blocks += [sealed.Block("vault", np.int32, held.shape, [held]), *blocks_of(parts)]
    return sealed.write(path, KIND, header, blocks)


def load(llm: Llama, path: str | Path) -> vault.Segment | None:
    """Llama.load_session(); returns what of the file the vault goes on to use."""
    context = llm._context("load_session")
    with sealed.Sealed.open(path, KIND, llm.maps_files) as file:
        about = file.header
        problem = fingerprint.of(llm).differs(fingerprint.Model(**about["model"]))
        if problem is not None:
            raise DocumentError(
                str(path),
                f"is a session with {about['model']['name'] or about['model']['file']}: {problem}",
                "load it into the model that made it, with its settings",
            )
        found = {name: file.array(name) for name in file.names()}
    tokens = found.pop("tokens")
    if len(tokens) > llm.n_ctx():
        raise DocumentError(
            str(path),
            f"has {len(tokens):,} tokens, and the context {llm.n_ctx():,}",
            "raise {n_ctx}",
        )
    state, logits = found.pop("state"), found.pop("logits")
    llm.reset()  # type: ignore[no-untyped-call]
    context.clear_vault()
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    if llama_cpp.llama_state_seq_set_data(context.ctx, pointer, state.size, 0) != state.size:
        context.kv_cache_seq_rm(0, -1, -1)
        raise NoRoomError(
            str(path), "has more rows than the KV cache has cells", "raise budget or room"
        )
    segment = None
    keeps = llm.snapkv is not None and llm.snapkv.vault != "off"
    if "vault" in found and keeps:
        held = np.array(found["vault"])
        segment = vault.from_arrays(found, held, about["n_swa_rows"], file.file)
        vault.attach(context, segment)
    llm.input_ids[: len(tokens)] = tokens
    llm.n_tokens, llm.n_prompt = len(tokens), about["n_prompt"]
    llm.set_seed(about["seed"])
    llm._requires_eval = logits.size == 0
    if logits.size:
        values = np.ascontiguousarray(logits)
        pointer_f32 = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        if not native.llama_snapkv_set_logits(context.ctx, pointer_f32):
            native.fail("llama_snapkv_set_logits")
        if llm._logits_all:
            llm._store_logits(llm.n_tokens - 1, 1)
    return segment
