"""Conversations in memory and in files, to go on with."""

from __future__ import annotations

import ctypes
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import failure  # isort: skip

import llama_cpp
import numpy as np
import numpy.typing as npt

from snapkv_local.errors import DocumentError, NoRoomError
from snapkv_local.llama.saved import model_of
from snapkv_local.llama.worded import WordedLlama
from snapkv_local.mapped import MappedFile
from snapkv_local.native import states, vault
from snapkv_local.stats import PrefillStats
from snapkv_local.storage import fingerprint, seal, sealed
from snapkv_local.storage.document import blocks_of

SESSION = "session"


@dataclass(frozen=True)
class Snapshot:
    """A conversation, in memory or in a file.

    Attributes:
        header: for JSON.
        arrays: by name, as save() writes them.
        file: that the arrays are mapped from; None if they are memory.
    """

    header: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    file: MappedFile | None = None

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Of the conversation, [n_tokens]."""
        return self.arrays["tokens"]

    @property
    def n_bytes(self) -> int:
        """Of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def with_header(self, header: dict[str, Any]) -> Snapshot:
        """The same arrays with another header."""
        return replace(self, header=header)

    def write(self, path: str | Path) -> int:
        """To a file that load() reads; the file's bytes.

        Raises:
            DocumentError: the disk has no space for it.
        """
        blocks = [seal.Block(name, a.dtype, a.shape, [a]) for name, a in self.arrays.items()]
        return seal.write(path, SESSION, self.header, blocks)


def take(llm: WordedLlama, with_vault: bool = True) -> Snapshot:
    """A copy of the conversation.

    Args:
        with_vault: its vault, too, if it has one.

    Raises:
        MemoryError: there is too little for it.
    """
    arrays = {}
    with llm._context("save_session").gate:
        header, blocks = _described(llm, with_vault)
        for block in blocks:
            array = np.empty(block.shape, block.dtype)
            flat, at = array.reshape(-1).view(np.uint8), 0
            for piece in block.pieces:
                data = np.asarray(piece).reshape(-1).view(np.uint8)
                flat[at : at + data.size], at = data, at + data.size
            arrays[block.name] = array
    return Snapshot(header, arrays)


def save(llm: WordedLlama, path: str | Path) -> int:
    """Llama.save_session()."""
    with llm._context("save_session").gate:
        return seal.write(path, SESSION, *_described(llm))


def load(llm: WordedLlama, path: str | Path) -> vault.Segment | None:
    """Llama.load_session(); returns what of the file the vault goes on to use."""
    llm._context("load_session")
    return put(llm, read(path, llm.maps_files), str(path))


def read(path: str | Path, mapped: bool = True) -> Snapshot:
    """What save() or Snapshot.write() has written, all of it checked.

    Args:
        mapped: arrays are read from the file as they are used.

    Raises:
        DocumentError: the file is missing, damaged, or of another kind.
    """
    with sealed.Sealed.open(path, SESSION, mapped) as file:
        found = {name: file.array(name) for name in file.names()}
        return Snapshot(file.header, found, file.file)


def _described(
    llm: WordedLlama, with_vault: bool = True
) -> tuple[dict[str, Any], list[seal.Block]]:
    """Header and blocks of a conversation, which is not to change until they are written."""
    context = llm._context("save_session")
    n_bytes = llm.bytes_of_sequence()
    state = np.empty(n_bytes, np.uint8)
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    if llama_cpp.llama_state_seq_get_data(context.ctx, pointer, n_bytes, context.seq_id) != n_bytes:
        failure.fail("llama_state_seq_get_data")
    tokens = np.array(llm._input_ids, np.int32)
    # without them the last token would be evaluated again, with the compact cache before it
    logits = np.empty(0, np.float32)
    if llm.n_tokens > 0 and not llm._requires_eval:
        logits = np.array(llm._logits(1)[0])
    parts = vault.segments(context) if with_vault else []
    turns, held = states.kept(context), states.kept(context, in_vault=True) if parts else []
    header = {
        "model": asdict(model_of(llm)),
        "n_prompt": llm.n_prompt,
        "seed": int(llm._seed),
        "n_swa_rows": parts[-1].n_swa_rows if parts else 0,
        "turns": [state.pos for state in turns],
        "states": [state.pos for state in held],
        "last_prefill": None if llm.last_prefill is None else llm.last_prefill.to_dict(),
    }
    blocks = [
        seal.Block("tokens", np.int32, tokens.shape, [tokens]),
        seal.Block("state", np.uint8, state.shape, [state]),
        seal.Block("logits", np.float32, logits.shape, [logits]),
    ]
    if turns:
        rows = [turn.data for turn in turns]
        blocks.append(seal.Block("turns", np.uint8, (len(rows), rows[0].size), rows))
    for turn in turns:
        name = f"turns.logits.{turn.pos}"
        blocks.append(seal.Block(name, np.float32, turn.logits.shape, [turn.logits]))
    if parts:
        spelt = np.concatenate([part.tokens for part in parts])
        blocks.append(seal.Block("vault", np.int32, spelt.shape, [spelt]))
        blocks += blocks_of(parts, held)
    return header, blocks


def put(llm: WordedLlama, snapshot: Snapshot, name: str) -> vault.Segment | None:
    """Go on with a conversation; returns what of it the vault goes on to use.

    Args:
        name: of the snapshot, in errors.

    Raises:
        DocumentError: it is of another model or of other settings, or longer than n_ctx.
        NoRoomError: the KV cache has too few cells. The sequence is empty then.
    """
    with llm._context("load_session").gate:
        return _put(llm, snapshot, name)


def _put(llm: WordedLlama, snapshot: Snapshot, name: str) -> vault.Segment | None:
    context = llm._context("load_session")
    about, found = snapshot.header, dict(snapshot.arrays)
    problem = model_of(llm).differs(fingerprint.Model(**about["model"]))
    if problem is not None:
        raise DocumentError(
            name,
            f"is a session with {about['model']['name'] or about['model']['file']}: {problem}",
            "load it into the model that made it, with its settings",
        )
    tokens = found.pop("tokens")
    if len(tokens) > llm.n_ctx():
        raise DocumentError(
            name,
            f"has {len(tokens):,} tokens, and the context holds {llm.n_ctx():,}",
            "raise {n_ctx}",
        )
    state, logits = found.pop("state"), found.pop("logits")
    llm.reset()
    context.clear_vault()
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    n_read = llama_cpp.llama_state_seq_set_data(context.ctx, pointer, state.size, context.seq_id)
    if n_read != state.size:
        context.kv_cache_seq_rm(-1, -1, -1)
        raise NoRoomError(
            name,
            "has more rows than the KV cache has cells",
            "raise {budget} or {decode_cells}",
        )
    for i, pos in enumerate(about.get("turns", ())):
        of_turn = np.ascontiguousarray(found[f"turns.logits.{pos}"])
        states.add(context, [states.State(pos, found["turns"][i], of_turn)])
    segment = None
    keeps = llm.snapkv is not None and llm.snapkv.vault != "off"
    if "vault" in found and keeps:
        segment = vault.from_arrays(
            found,
            np.array(found["vault"]),
            about["n_swa_rows"],
            about.get("states", ()),
            snapshot.file,
        )
        vault.attach(context, segment)
    llm.input_ids[: len(tokens)] = tokens
    llm.n_tokens, llm.n_prompt = len(tokens), about["n_prompt"]
    stats = about.get("last_prefill")
    llm.last_prefill, llm.evictions = None if stats is None else PrefillStats(**stats), []
    llm.set_seed(about["seed"])
    llm._requires_eval = logits.size == 0
    if logits.size:
        context.set_logits(logits)
        if llm._logits_all:
            llm._store_logits(llm.n_tokens - 1, 1)
    return segment
