"""States of recurrent layers that the engine keeps: a conversation, or a vault, can go back to them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local.native import api, failure, structs

if TYPE_CHECKING:
    from snapkv_local.native.context import SnapKVContext


@dataclass(frozen=True)
class State:
    """Behind a token.

    Attributes:
        pos: of the token that comes next.
        data: uint8 [n_bytes], of all recurrent layers.
        logits: float32 [n_vocab] of the token before pos; empty if they are not known.
    """

    pos: int
    data: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float32]


def kept(context: SnapKVContext, in_vault: bool = False) -> list[State]:
    """What is kept of the conversation, or of the vault, by position; none for models without such layers.

    The arrays are the engine's memory: valid until the context changes.
    """
    return list(_kept(context, in_vault))


def add(context: SnapKVContext, states: Sequence[State], in_vault: bool = False) -> None:
    """Keep states that were got from the same tokens.

    Args:
        in_vault: of the vault's tokens: the data is not copied, and the caller keeps it until the
            vault is cleared. Else of the conversation's.

    Raises:
        NativeError: they are of another model, or at no position that can be gone back to.
    """
    for state in states:
        raw = structs.llama_snapkv_state(
            pos=state.pos,
            data=state.data.ctypes.data,
            n_bytes=state.data.size,
            logits=_pointer(state.logits) if state.logits.size else None,
        )
        if not api.llama_snapkv_add_state(context.ctx, context.seq_id, in_vault, ctypes.byref(raw)):
            failure.fail("llama_snapkv_add_state")


def _kept(context: SnapKVContext, in_vault: bool) -> Iterator[State]:
    if not context.is_hybrid:
        return
    n_vocab = context.model.n_vocab()
    for i in range(api.llama_snapkv_n_states(context.ctx, context.seq_id, in_vault)):
        raw = structs.llama_snapkv_state()
        if not api.llama_snapkv_get_state(
            context.ctx, context.seq_id, in_vault, i, ctypes.byref(raw)
        ):
            failure.fail("llama_snapkv_get_state")
        data = (ctypes.c_uint8 * raw.n_bytes).from_address(raw.data)
        logits = np.ctypeslib.as_array(raw.logits, (n_vocab,)) if raw.logits else _NONE
        yield State(raw.pos, np.ctypeslib.as_array(data), logits)


_NONE = np.empty(0, np.float32)


def _pointer(values: npt.NDArray[np.float32]) -> Any:
    return values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
