"""Which conversation a request goes on with, and which one has to rest for it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import SnapKVError
from snapkv_local.server.errors import ApiError, logger, refusal
from snapkv_local.server.place import Place
from snapkv_local.server.resting import Rest, Resting, new_id

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama
    from snapkv_local.llama.session import Snapshot

# tokens that are worth a copy of a conversation that begins with them; fewer are evaluated at once
_WORTH_A_COPY = 64
# seconds between two looks at whether a request still waits for a sequence
_LOOK_EVERY = 0.1


class Pool:
    """The conversations of a server: as many as the Llama has sequences, and those that rest.

    A request goes on with the conversation that its prompt continues. One that only begins as another
    conversation does gets a copy of it. Else it gets a sequence that is free, or that of the conversation
    that was used least recently, which then rests.

    Args:
        llm: with its n_parallel sequences, none of which anybody else uses.
        resting: for conversations that lose their sequence.

    Attributes:
        places: a sequence each, in their order.
        llamas: that requests get from llama(), those that answer now and those that do not.
    """

    def __init__(self, llm: Llama, resting: Resting) -> None:
        # only now: it loads the native library
        from snapkv_local.llama import conversation, reach

        self.llm = llm
        self.resting = resting
        self._changed = threading.Condition()
        contexts = [conversation.context_of(llm, i) for i in range(llm.n_parallel)]
        drafts = [llm.draft_model, *(conversation.another_draft(llm) for _ in contexts[1:])]
        self.places = [
            Place(i, conversation.Conversation.empty(llm, context, draft), reach.Reach())
            for i, (context, draft) in enumerate(zip(contexts, drafts, strict=True))
        ]
        self._nothing = conversation.Conversation.empty(llm, contexts[0], llm.draft_model)
        self.llamas = tuple(conversation.sibling(llm) for _ in self.places)
        self._free = list(self.llamas)

    @property
    def n_busy(self) -> int:
        """Sequences that answer."""
        return sum(place.user is not None for place in self.places)

    @contextlib.contextmanager
    def llama(self) -> Iterator[Llama]:
        """A Llama for one request, which has no conversation until place() gives it one."""
        with self._changed:
            llm = self._free.pop()
        try:
            yield llm
        finally:
            llm.end_answer()
            llm.place = llm.on_token = llm.prefill_progress = llm.draws = None
            with self._changed:
                self._release(llm)
                self._free.append(llm)
                self._changed.notify_all()

    def place(
        self,
        llm: Llama,
        prompt: Sequence[int],
        config: SnapKVConfig | None,
        *,
        index: int | None = None,
        fresh: bool = False,
        check: Callable[[], object] = lambda: None,
    ) -> Place:
        """Give a Llama the conversation that goes on with a prompt.

        Args:
            llm: of llama().
            prompt: tokens.
            config: how it is to be compressed.
            index: of a sequence that it has to be; None for any.
            fresh: nothing that is there may be used.
            check: called while the sequence is waited for; what it raises ends the wait.

        Raises:
            ApiError: there is no such sequence.
            OutOfMemoryError, NativeError: the conversation is lost.
        """
        llm.end_answer()
        tokens = np.asarray(prompt, np.int32)
        if index is not None and not 0 <= index < len(self.places):
            n = len(self.places)
            raise refusal(f"id_slot: there are {n}, counted from 0: see GET /slots", "id_slot")
        with self._changed:
            self._release(llm)
            while index is not None and self.places[index].user is not None:
                self._changed.wait(_LOOK_EVERY)
                check()
            places = [place for place in self.places if place.user is None]
            if index is not None:
                places = [self.places[index]]
            place = self._give(llm, tokens, config, places, fresh)
            place.user, place.used = llm, time.monotonic()
        return place

    def held(self) -> list[Place | Rest]:
        """Places, and then the conversations that rest; each conversation once, from any thread."""
        while True:
            ids = [place.id for place in self.places]
            resting = [rest for rest in self.resting if rest.id not in ids]
            # one that came or went in between may be in neither list
            if ids == [place.id for place in self.places]:
                return [*self.places, *resting]

    def erase(self, id_: str) -> tuple[int, int]:
        """Forget a conversation; one that is answered, when its answer ends. From any thread.

        Returns:
            the index of its sequence, or -1 if it rests, and the tokens that are forgotten.

        Raises:
            ApiError: there is none with this id.
        """
        with self._changed:
            found: list[Place | Rest] = [each for each in self.held() if each.id == id_]
            if not found:
                raise ApiError(
                    404,
                    f"there is no conversation {id_}: see GET /slots?resting=true",
                    code="conversation_not_found",
                )
            held, n_tokens = found[0], len(found[0].reach.tokens)
            self.resting.remove(id_)
            if isinstance(held, Rest):
                return -1, n_tokens
            if held.user is None:
                held.empty(self.llm)
            else:
                held.is_erased = True
            return held.index, n_tokens

    def close(self) -> None:
        """Let all conversations rest in files, if there is a folder for them."""
        from snapkv_local.llama.drafting import OwnDraft

        with self._changed:
            if self.resting.folder is not None:
                for place in self.places:
                    if place.user is None:
                        self._rest(self.llamas[0], place)
            self.resting.close()
        for llm in self.llamas:
            llm.close()
        for place in self.places[1:]:  # the first one has that of the pool's Llama
            draft = place.conversation.state["draft_model"]
            if isinstance(draft, OwnDraft):
                draft.close()

    def _give(
        self,
        llm: Llama,
        tokens: npt.NDArray[np.int32],
        config: SnapKVConfig | None,
        places: list[Place],
        fresh: bool,
    ) -> Place:
        settings = None if config is None else asdict(config)
        # that of a document is in its file, and of no conversation
        ends = [len(each.tokens) for each in llm.documents if begins_with(tokens, each.tokens)]
        found: list[tuple[int, float, Place | Rest]] = [
            (each.reach.usable(tokens), each.used, each)
            for each in (*places, *self.resting)
            if not fresh and each.reach.settings == settings
        ]
        n_usable, _, best = max(found, key=lambda each: each[:2], default=(0, 0.0, None))
        continues = best is not None and n_usable > 0 and best.reach.continues(tokens)
        if not continues and n_usable < max([_WORTH_A_COPY, *ends]):
            best = None
        if isinstance(best, Place) and continues:
            best.conversation.give_to(llm)
            return best
        free = [place for place in places if place.is_empty]
        place = free[0] if free else min(places, key=lambda place: place.used)
        source = self._snapshot(llm, best) if best is not None and best is not place else None
        if not place.is_empty:
            self._rest(llm, place)
        if best is place:  # what it parts with rests by now
            place.id, place.figures = new_id(), None
            place.conversation.give_to(llm)
            return place
        self._begin(llm, place, config)
        if source is not None:
            self._restore(llm, place, source)
        if isinstance(best, Rest) and continues:
            place.id, place.figures = best.id, best.figures
            self.resting.remove(best.id)
        return place

    def _begin(self, llm: Llama, place: Place, config: SnapKVConfig | None) -> None:
        """Empty a place for a conversation of its own."""
        place.empty(self.llm)
        place.conversation.give_to(llm)
        context = place.conversation.state["_ctx"]
        if config is not None and context.options.config != config:
            llm.set_snapkv(config)
        llm.snapkv = config

    def _snapshot(self, llm: Llama, source: Place | Rest) -> Snapshot | None:
        """A copy of a conversation; None if there is none to be had."""
        from snapkv_local.llama import session

        try:
            if isinstance(source, Rest):
                return self.resting.get(source)
            source.conversation.give_to(llm)
            of_document = any(llm._attached is each.segment for each in llm.documents)
            return session.take(llm, with_vault=not of_document)
        except (SnapKVError, OSError, MemoryError) as e:
            logger.warning("a conversation is not gone on with: %s", e)
            if isinstance(source, Rest):
                self.resting.remove(source.id)
            return None

    def _rest(self, llm: Llama, place: Place) -> None:
        """Keep what a place holds, which goes on to hold it, too."""
        if not self.resting.keeps or len(place.reach.tokens) < _WORTH_A_COPY:
            return
        if place.reach.settings is None:  # the full cache
            return
        snapshot = self._snapshot(llm, place)
        if snapshot is not None:
            self.resting.add(place.id, place.reach, snapshot, place.figures)

    def _restore(self, llm: Llama, place: Place, source: Snapshot) -> None:
        from snapkv_local.llama import session

        try:
            llm._attached = session.put(llm, source, "a conversation that rests")
        except (SnapKVError, MemoryError) as e:
            logger.warning("a conversation is not gone on with: %s", e)
            from snapkv_local.llama.conversation import forget

            forget(place.conversation.state["_ctx"])
            place.conversation.give_to(llm)

    def _release(self, llm: Llama) -> None:
        """The Llama's answer has ended, if it had a conversation."""
        for place in self.places:
            if place.user is llm:
                place.take_back(llm)
                if place.is_erased:
                    place.empty(self.llm)
        self._nothing.give_to(llm)


def begins_with(tokens: npt.NDArray[np.int32], start: npt.NDArray[np.int32]) -> bool:
    """Whether tokens begin with others."""
    return np.array_equal(tokens[: len(start)], start)
