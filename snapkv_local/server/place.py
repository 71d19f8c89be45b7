"""A sequence of the pool, and the conversation that it holds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from snapkv_local.errors import SnapKVError
from snapkv_local.llama.usage import Usage
from snapkv_local.server.resting import new_id

if TYPE_CHECKING:
    from snapkv_local.llama.conversation import Conversation
    from snapkv_local.llama.llama import Llama
    from snapkv_local.llama.reach import Reach

# of a Usage, what holds for an answer that was stopped, too
_OF_CONVERSATION = (
    *("n_prompt", "n_kept", "n_cached", "bytes_kv", "bytes_decode_cells", "bytes_kv_full"),
)


@dataclass(eq=False)
class Place:
    """A sequence, and the conversation that it holds.

    Attributes:
        index: of the sequence.
        conversation: as it was when its last answer ended.
        reach: where it can be gone on from; nothing while it is empty.
        id: of the conversation.
        user: the Llama that answers with it; None if none does.
        used: when it was used last.
        figures: of its last answer, for people; None if there was none. Of one that was stopped, what the
            conversation takes.
        is_erased: it is to be emptied when its answer ends.
    """

    index: int
    conversation: Conversation
    reach: Reach
    id: str = field(default_factory=new_id)
    user: Llama | None = None
    used: float = 0.0
    figures: dict[str, Any] | None = None
    is_erased: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing."""
        return len(self.reach.tokens) == 0

    def empty(self, llm: Llama) -> None:
        """Take away all that it holds; another conversation may begin.

        Args:
            llm: the pool's.
        """
        from snapkv_local.llama.conversation import forget
        from snapkv_local.llama.drafting import OwnDraft
        from snapkv_local.llama.reach import Reach

        context = self.conversation.state["_ctx"]
        forget(context)
        draft = self.conversation.state["draft_model"]
        if isinstance(draft, OwnDraft):
            draft.forget()
        self.conversation = type(self.conversation).empty(llm, context, draft)
        self.reach, self.id, self.figures, self.is_erased = Reach(), new_id(), None, False

    def take_back(self, llm: Llama) -> None:
        """Hold what a Llama's answer has left, which has ended."""
        from snapkv_local.llama.conversation import Conversation
        from snapkv_local.llama.reach import Reach

        self.conversation = Conversation.of(llm)
        self.user = None
        try:
            self.reach = Reach.of(llm)
        except SnapKVError:  # nothing of it is to be trusted
            self.reach = Reach()
        if self.is_empty:
            self.figures = None
        elif self.figures is None or self.figures["n_prompt"] != llm.n_prompt:
            used = dataclasses.asdict(Usage.of(llm))
            self.figures = {name: used[name] for name in _OF_CONVERSATION}
