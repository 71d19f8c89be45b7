"""K and V of a conversation's prompt, as the engine's vault holds them off the device."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local.errors import DocumentError
from snapkv_local.mapped import MappedFile
from snapkv_local.native import api, failure, states, structs
from snapkv_local.native.states import State

if TYPE_CHECKING:
    from snapkv_local.native.context import SnapKVContext

Rows = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of the vault.

    Attributes:
        tokens: int32 [n_tokens].
        k: for each cached layer uint8 [n_tokens, n_bytes], rows as the cache holds them.
        v: as k.
        swa: uint8 [n_bytes], rows of the sliding-window layers before the segment's end; empty for
            other models.
        n_swa_rows: positions that swa has.
        states: of recurrent layers, behind some of these tokens and the last one; none for other models.
            Only of one that a file holds.
        file: that k, v and swa are mapped from; None if they are memory.
    """

    tokens: npt.NDArray[np.int32]
    k: Sequence[Rows]
    v: Sequence[Rows]
    swa: Rows
    n_swa_rows: int
    states: Sequence[State] = ()
    file: MappedFile | None = None

    def change(self) -> DocumentError | None:
        """What forbids to use it any more."""
        change = None if self.file is None else self.file.change()
        if self.file is None or change is None:
            return None
        return DocumentError(
            str(self.file.path),
            f"{change} after it was opened, and what was read of it may be gone",
            "put a whole one in its place, by copying to another name and renaming, and start again",
        )


def segments(context: SnapKVContext) -> list[Segment]:
    """What the vault holds, in the order of the tokens, without a copy.

    The arrays are the engine's memory: valid until the next prefill, or until the vault is cleared.
    """
    parts = list(_raw_segments(context))
    sizes = row_sizes(context) if parts else []

    def rows(data: Any, n_tokens: int, n_bytes: Sequence[int]) -> list[Rows]:
        return [_view(data[ic], n_tokens * n).reshape(n_tokens, n) for ic, n in enumerate(n_bytes)]

    return [
        Segment(
            tokens=_tokens(raw),
            k=rows(raw.k, raw.n_tokens, [k for k, _ in sizes]),
            v=rows(raw.v, raw.n_tokens, [v for _, v in sizes]),
            swa=_view(raw.swa, raw.swa_bytes),
            n_swa_rows=raw.n_swa_rows,
        )
        for raw in parts
    ]


def attach(context: SnapKVContext, segment: Segment) -> None:
    """Add a segment to the vault's end.

    Its arrays are not copied, and may be of a mapped file. The caller keeps them until the vault is
    cleared.

    Raises:
        NativeError: the context keeps no vault, or the segment is not of its model.
    """
    pos0 = len(tokens(context))
    pointers = [
        (ctypes.c_void_p * len(rows))(*(layer.ctypes.data for layer in rows))
        for rows in (segment.k, segment.v)
    ]
    raw = structs.llama_snapkv_vault_segment(
        pos0=pos0,
        n_tokens=len(segment.tokens),
        tokens=segment.tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
        k=pointers[0],
        v=pointers[1],
        swa=segment.swa.ctypes.data if segment.swa.size else None,
        swa_bytes=segment.swa.size,
        n_swa_rows=segment.n_swa_rows,
    )
    if not api.llama_snapkv_vault_attach(context.ctx, context.seq_id, ctypes.byref(raw)):
        failure.fail("llama_snapkv_vault_attach")
    states.add(context, segment.states, in_vault=True)


def tokens(context: SnapKVContext) -> npt.NDArray[np.int32]:
    """The tokens whose K and V the vault holds, int32 [n_tokens]."""
    return np.concatenate([np.empty(0, np.int32), *map(_tokens, _raw_segments(context))])


def row_sizes(context: SnapKVContext) -> list[tuple[int, int]]:
    """Bytes of a token's K and V in each cached layer, [n_layer_cached, 2].

    Raises:
        NativeError: the vault is empty.
    """
    sizes = []
    for ic in range(api.llama_snapkv_n_layer(context.ctx)):
        info = structs.llama_snapkv_vault_info()
        if not api.llama_snapkv_get_vault_info(context.ctx, context.seq_id, ic, ctypes.byref(info)):
            failure.fail("llama_snapkv_get_vault_info")
        sizes.append((info.row_bytes_k, info.row_bytes_v))
    return sizes


def joined(parts: Sequence[Segment], held: Sequence[State]) -> Iterator[tuple[str, list[Rows]]]:
    """The arrays of segments that follow each other, by name, as pieces of one array each.

    The rows of sliding-window layers are those of the last segment.

    Args:
        held: states of the vault.
    """
    for ic in range(len(parts[0].k)):
        yield f"k.{ic}", [part.k[ic] for part in parts]
        yield f"v.{ic}", [part.v[ic] for part in parts]
    yield "swa", [parts[-1].swa]
    if held:
        yield "states", [state.data[None] for state in held]


def from_arrays(
    found: dict[str, npt.NDArray[Any]],
    given: npt.NDArray[np.int32],
    n_swa_rows: int,
    positions: Sequence[int],
    file: MappedFile | None,
) -> Segment:
    """A segment from what joined() has named, and its tokens. A file is what the arrays map.

    Args:
        positions: of the states.
    """
    none = np.empty(0, np.float32)
    held = [State(pos, found["states"][i], none) for i, pos in enumerate(positions)]
    n_layer = sum(name.startswith("k.") for name in found)
    return Segment(
        tokens=given,
        k=[found[f"k.{ic}"] for ic in range(n_layer)],
        v=[found[f"v.{ic}"] for ic in range(n_layer)],
        swa=found["swa"],
        n_swa_rows=n_swa_rows,
        states=held,
        file=file,
    )


def _raw_segments(context: SnapKVContext) -> Iterator[structs.llama_snapkv_vault_segment]:
    for i in range(api.llama_snapkv_vault_n_segments(context.ctx, context.seq_id)):
        raw = structs.llama_snapkv_vault_segment()
        if not api.llama_snapkv_vault_get_segment(
            context.ctx, context.seq_id, i, ctypes.byref(raw)
        ):
            failure.fail("llama_snapkv_vault_get_segment")
        yield raw


def _tokens(raw: structs.llama_snapkv_vault_segment) -> npt.NDArray[np.int32]:
    address = ctypes.cast(raw.tokens, ctypes.c_void_p).value
    return _view(address, 4 * raw.n_tokens).view(np.int32)


def _view(address: int | None, n_bytes: int) -> Rows:
    if address is None or n_bytes == 0:
        return np.empty(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(address))
