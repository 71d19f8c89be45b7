"""How much of a conversation a prompt could go on from, without asking the engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native.context import SnapKVContext  # isort: skip

import llama_cpp
import numpy as np
import numpy.typing as npt

from snapkv_local.llama.turn import n_common
from snapkv_local.native import states, vault

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

_NONE = np.empty(0, np.int32)


@dataclass(frozen=True, eq=False)
class Reach:
    """Where a conversation can be gone on from, as it was when its last answer ended.

    Attributes:
        tokens: of the conversation, int32 [n_tokens].
        n_prompt: of these, those of the last prompt.
        n_compacted: of these, those that were compressed: what parts from them goes on from the vault only.
        places: where models with recurrent layers can go back to; None for others, which can anywhere.
        pos_swa: the first position that sliding-window layers hold.
        n_swa: their window; 0 for models without.
        vault: tokens of the vault, int32 [n].
        settings: of the compression, as JSON; conversations with others cannot go on.
    """

    tokens: npt.NDArray[np.int32] = field(default_factory=lambda: _NONE)
    n_prompt: int = 0
    n_compacted: int = 0
    places: tuple[int, ...] | None = None
    pos_swa: int = 0
    n_swa: int = 0
    vault: npt.NDArray[np.int32] = field(default_factory=lambda: _NONE)
    settings: dict[str, Any] | None = None

    @classmethod
    def of(cls, llm: Llama) -> Reach:
        """Of a Llama's conversation."""
        context = llm._ctx
        tokens = llm._input_ids.astype(np.int32)
        if not isinstance(context, SnapKVContext) or llm.snapkv is None:
            return cls(tokens, llm.n_prompt)
        with context.gate:
            places = tuple(state.pos for state in states.kept(context))
            return cls(
                tokens=tokens,
                n_prompt=min(llm.n_prompt, llm.n_tokens),
                n_compacted=context.n_compacted(),
                places=places if context.is_hybrid else None,
                pos_swa=int(context.info().pos_swa),
                n_swa=int(llama_cpp.llama_model_n_swa(llm.model)),
                vault=vault.tokens(context) if llm.snapkv.vault != "off" else _NONE,
                settings=asdict(llm.snapkv),
            )

    def header(self) -> dict[str, Any]:
        """For JSON, without the tokens and the vault's."""
        return {
            "n_prompt": self.n_prompt,
            "n_compacted": self.n_compacted,
            "places": self.places,
            "pos_swa": self.pos_swa,
            "n_swa": self.n_swa,
            "settings": self.settings,
        }

    @classmethod
    def read(
        cls,
        header: dict[str, Any],
        tokens: npt.NDArray[np.int32],
        vault_tokens: npt.NDArray[np.int32],
    ) -> Reach:
        """Of what header() has given."""
        places = header["places"]
        about = {**header, "places": None if places is None else tuple(places)}
        return cls(tokens=tokens, vault=vault_tokens, **about)

    def usable(self, prompt: npt.NDArray[np.int32]) -> int:
        """Tokens at a prompt's start that need not be evaluated."""
        n_same = n_common(self.tokens, prompt)
        found = 0
        if self.places is not None and n_same < len(self.tokens):
            found = max((place for place in self.places if place <= n_same), default=0)
        elif n_same >= self.n_compacted:
            found = n_same
        if self.n_swa and not 0 <= self.pos_swa <= max(0, found - self.n_swa):
            found = 0
        return max(found, n_common(self.vault, prompt))

    def continues(self, prompt: npt.NDArray[np.int32]) -> bool:
        """Whether a prompt is this conversation's: it begins with the last one, or is it once more."""
        n_same = n_common(self.tokens, prompt)
        return n_same > 0 and n_same >= min(self.n_prompt, len(prompt))
