"""What a context keeps of a prompt, and in its vault: to read, and to choose anew."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api, failure, structs  # isort: skip

from snapkv_local.errors import ConfigError, NoRoomError
from snapkv_local.policies.view import LayerView
from snapkv_local.stats import RecallStats


class KeptRows:
    """The part of SnapKVContext that looks at rows.

    Attributes:
        ctx: llama_context.
        seq_id: whose rows.
    """

    ctx: Any
    seq_id: int

    def info(self) -> structs.llama_snapkv_seq_info:
        """What the engine says of the sequence."""
        info = structs.llama_snapkv_seq_info()
        if not api.llama_snapkv_get_seq_info(self.ctx, self.seq_id, ctypes.byref(info)):
            failure.fail("llama_snapkv_get_seq_info")
        return info

    def kept(self) -> npt.NDArray[np.int32]:
        """Prompt positions kept before the window, [n_layer_cached, n_head_kv, n_kept], ascending.

        Raises:
            ConfigError: nothing was evicted, or the heads keep different numbers of rows.
        """
        if not self.info().compacted:
            raise ConfigError(
                "kept positions",
                "the prompt was not compressed",
                "prefill one longer than the budget",
            )

        def read(ic: int, head: int, out: Any, n: int) -> int:
            return int(api.llama_snapkv_kept(self.ctx, self.seq_id, ic, head, out, n))

        return self._by_head("kept positions", read, np.int32, ctypes.c_int32)

    def scores(self) -> npt.NDArray[np.float32]:
        """Pooled scores of the last prefill, [n_layer_cached, n_head_kv, n_prompt - window].

        Raises:
            ConfigError: they were not kept, or nothing was evicted.
        """
        if api.llama_snapkv_scores(self.ctx, 0, 0, None, 0) == 0:
            raise ConfigError(
                "prefill scores",
                "the last prefill has kept none",
                "pass keep_scores=True to Llama and prefill a prompt longer than the budget",
            )

        def read(ic: int, head: int, out: Any, n: int) -> int:
            return int(api.llama_snapkv_scores(self.ctx, ic, head, out, n))

        return self._by_head("prefill scores", read, np.float32, ctypes.c_float)

    def selected(self) -> npt.NDArray[np.int32]:
        """Positions that later layers have computed in the last prefill, [n_selected].

        There are none without a selection.
        """
        ids = np.empty(api.llama_snapkv_selected(self.ctx, None, 0), np.int32)
        api.llama_snapkv_selected(self.ctx, pointer(ids, ctypes.c_int32), len(ids))
        return ids

    def recalls(self) -> list[RecallStats]:
        """The recalls since the sequence's last prompt, the first one first."""
        n = api.llama_snapkv_recalls(self.ctx, self.seq_id, None, 0)
        events = (structs.llama_snapkv_recall_event * n)()
        api.llama_snapkv_recalls(self.ctx, self.seq_id, events, n)
        return [RecallStats.of(event) for event in events]

    def coverage(self) -> npt.NDArray[np.float32]:
        """Share of the window's attention mass on the kept rows, [n_layer_cached, n_head_kv].

        Raises:
            ConfigError: the last prefill has evicted nothing.
        """
        if api.llama_snapkv_coverage(self.ctx, 0, 0) < 0:
            raise ConfigError(
                "coverage",
                "the last prefill has evicted nothing",
                "prefill a prompt longer than the budget",
            )

        def read(ic: int, head: int, out: Any, n: int) -> int:
            if out is not None:
                out[0] = api.llama_snapkv_coverage(self.ctx, ic, head)
            return 1

        return self._by_head("coverage", read, np.float32, ctypes.c_float)[:, :, 0]

    def layer_views(self) -> list[LayerView]:
        """What the vault holds of each cached layer.

        Raises:
            ConfigError: there is no vault, or nothing in it.
        """
        views = []
        n_layer = api.llama_snapkv_n_layer(self.ctx)
        for ic in range(n_layer):
            info = structs.llama_snapkv_vault_info()
            if not api.llama_snapkv_get_vault_info(self.ctx, self.seq_id, ic, ctypes.byref(info)):
                raise _no_vault()
            q = np.empty((info.n_head, info.n_queries, info.head_dim), np.float32)
            k = np.empty((info.n_head_kv, info.n_tokens, info.head_dim), np.float32)
            v = np.empty((info.n_head_kv, info.n_tokens, info.head_dim_v), np.float32)
            out = [pointer(array, ctypes.c_float) for array in (q, k, v)]
            if not api.llama_snapkv_vault_read(self.ctx, self.seq_id, ic, *out):
                failure.fail("llama_snapkv_vault_read")
            views.append(LayerView(ic, n_layer, q, k, v, info.scale, info.softcap))
        return views

    def select_rows(self, ids: Sequence[npt.NDArray[np.int32]] | None) -> None:
        """Fill the compact cache anew from the vault; what followed the prompt is removed.

        Args:
            ids: for each cached layer [n_head_kv, n_kept]; None keeps the whole prompt.

        Raises:
            ConfigError: no vault, or the positions are not ascending prefix positions, or differ in
                number between layers.
            NoRoomError: more rows than cells.
        """
        n_kept = rows = None
        if ids is not None:
            heads = [
                api.llama_snapkv_n_head_kv(self.ctx, ic)
                for ic in range(api.llama_snapkv_n_layer(self.ctx))
            ]
            if [layer.shape[:1] for layer in ids] != [(n,) for n in heads]:
                raise ConfigError(
                    "positions to keep",
                    f"have shapes {[layer.shape for layer in ids]}",
                    f"give one array [n_head_kv, n_kept] for each of {len(heads)} cached layers",
                )
            n_kept = np.array([layer.shape[1] for layer in ids], np.uint32)
            rows = np.concatenate([np.ascontiguousarray(layer, np.int32).ravel() for layer in ids])
        rc = api.llama_snapkv_select_rows(
            self.ctx, self.seq_id, pointer(n_kept, ctypes.c_uint32), pointer(rows, ctypes.c_int32)
        )
        if rc == api.RC_NO_ROOM:
            raise NoRoomError(
                "the rows to keep", "are more than the cells", "keep less or raise the budget"
            )
        if rc != 0:
            reason = failure.last_error()
            raise ConfigError("positions to keep", reason, 'prefill first, with vault="ram"')

    def clear_vault(self) -> None:
        """Free the vault."""
        api.llama_snapkv_vault_clear(self.ctx, self.seq_id)

    def layers(self) -> tuple[int, ...]:
        """The model's numbers of the layers whose cache is compressed, [n_layer_cached]."""
        n_layer = api.llama_snapkv_n_layer(self.ctx)
        return tuple(api.llama_snapkv_layer_id(self.ctx, ic) for ic in range(n_layer))

    def _by_head(
        self, what: str, read: Callable[[int, int, Any, int], int], dtype: Any, c_type: Any
    ) -> npt.NDArray[Any]:
        """[n_layer_cached, n_head_kv, n] from a function that fills one head's row, returning n."""
        layers: list[list[npt.NDArray[Any]]] = []
        for ic in range(api.llama_snapkv_n_layer(self.ctx)):
            rows = []
            for head in range(api.llama_snapkv_n_head_kv(self.ctx, ic)):
                row = np.empty(read(ic, head, None, 0), dtype)
                read(ic, head, pointer(row, c_type), len(row))
                rows.append(row)
            layers.append(rows)
        if len({(len(rows), len(row)) for rows in layers for row in rows}) != 1:
            raise ConfigError(
                what,
                "differ in number between heads or layers",
                "read them head by head (snapkv.h)",
            )
        return np.array(layers, dtype)


def pointer(array: npt.NDArray[Any] | None, c_type: Any) -> Any:
    """To the elements, for ctypes; None for none."""
    return None if array is None else array.ctypes.data_as(ctypes.POINTER(c_type))


def _no_vault() -> ConfigError:
    return ConfigError(
        "the vault",
        failure.last_error(),
        "use {vault} and prefill",
    )
