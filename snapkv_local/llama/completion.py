"""Completions: generation that ends where no cell can be freed, the answer's text and logprobs, and
what a chat says of its prompt."""

from __future__ import annotations

import contextlib
import inspect
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.llama.guided import GuidedLlama, asked_for  # isort: skip

import numpy as np
from llama_cpp.llama_chat_format import LlamaChatCompletionHandlerNotFoundException
from llama_cpp.llama_tokenizer import LlamaTokenizer

from snapkv_local import foreign
from snapkv_local.errors import LongPromptError, NoRoomError, SnapKVError
from snapkv_local.llama.answer_text import AnswerText, Logprobs, TokenText, likeliest, with_bytes
from snapkv_local.llama.drafting import ModelDraft, OwnDraft
from snapkv_local.prompt import vocabulary
from snapkv_local.prompt.chat import Chat
from snapkv_local.prompt.wording import Asked


class _Prepared(BaseException):
    """Ends llama_cpp's completion before it begins, with what it would call generate() with."""

    def __init__(self, tokens: list[int], options: dict[str, Any]) -> None:
        self.tokens, self.options = tokens, options


class CompletingLlama(GuidedLlama):
    """What Llama adds to llama_cpp's completions.

    The text of an answer is that of its bytes, streaming or not, with logprobs or without.
    llama_cpp decodes some tokens one by one, and loses characters that lie in several.

    Attributes:
        answer_tokens: of the last answer, as far as it is.
        stopped_by: the text of `stop` that ended it; None if none did.
        n_drafted: tokens of drafts that were looked at for it.
        n_accepted: of these, those that it has.
        place: called with each prompt before it is evaluated; it may give this Llama another conversation.
    """

    answer_tokens: list[int]
    n_accepted: int = 0
    stopped_by: str | None = None
    place: Callable[[Sequence[int]], object] | None = None
    _running: Generator[int, Any, None] | None = None

    _asked: Chat | None
    _preparing: bool
    _cut_short: bool

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Any, None]:
        """As llama_cpp.Llama.generate(); ends early where no eviction can free a cell.

        n_prompt is then the number of tokens given here, as it is after prefill().
        """
        if self._preparing:
            raise _Prepared(list(tokens), kwargs)
        if self.place is not None:
            self.place(tokens)
        self.n_prompt = len(tokens)
        self._before = tokens
        self._is_prompt = True
        self._marks.begin(self, self.snapkv, tokens)
        given = inspect.signature(super().generate).bind(tokens, *args, **kwargs).arguments
        if given.get("reset", True):
            self._return_to_turn(tokens)
        inner = super().generate(tokens, *args, **kwargs)
        if self.snapkv is not None or self.draft_model is not None:
            inner = self._until_full(inner)
        self._running = inner
        return inner

    def end_answer(self) -> None:
        """End the answer that is being generated, if there is one, before another conversation is taken."""
        running, self._running = self._running, None
        if running is not None:
            running.close()

    def _until_full(self, inner: Generator[int, Any, None]) -> Generator[int, Any, None]:
        sent = None
        n_sure: int | None = None  # tokens that are evaluated, and no drafts
        self.n_drafted = self.n_accepted = self.n_looks = self.n_again = 0
        if isinstance(self.draft_model, OwnDraft):
            self.draft_model.rests = False
        if isinstance(self.draft_model, ModelDraft):
            self.draft_model.on_step = self.on_token
        try:
            while True:
                self._generating = n_sure is not None
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                except NoRoomError:
                    if n_sure is None:
                        raise
                    self._cut_short = True
                    return
                finally:
                    self._generating = False
                n_sure = self.n_tokens if n_sure is None else n_sure + 1
                if n_sure < self.n_tokens:
                    self._note_guess(bool(self.input_ids[n_sure] == token))
                sent = yield token
        finally:
            inner.close()
            if n_sure is not None and self.draft_model is not None:
                self._end_at(n_sure)
            self.leave_steps()

    def _note_guess(self, is_right: bool) -> None:
        self.n_accepted += is_right
        if isinstance(self.draft_model, OwnDraft):
            # recurrent layers go back, and the step after it looks at no guess
            self.draft_model.rests = self._is_hybrid and not is_right

    def _end_at(self, n: int) -> None:
        """Take drafts back that an answer has ended before."""
        if self._ctx.ctx is None:
            return
        if n < self.n_tokens:
            self.n_tokens, self._requires_eval = n, True
            self._trim()
        self._end_looks()

    def detokenize(
        self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False
    ) -> bytes:
        """As llama_cpp.Llama.detokenize(), which leaves out tokens of more than 32 bytes."""
        if not isinstance(self.tokenizer_, LlamaTokenizer):
            return bytes(super().detokenize(tokens, prev_tokens, special))
        text = b"".join(vocabulary.pieces(self, tokens, special))
        starts = len(tokens) > 0 and tokens[0] == self.token_bos()
        return text.removeprefix(b" ") if starts else text

    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama.create_chat_completion(); an answer that is begun goes on.

        Control words in messages and tools stay text. A last message of the assistant's is the
        beginning of the answer, which goes on right behind it, and what is returned is the rest.

        In logprobs each token has its own bytes, of which clients put characters together.

        Raises:
            ConfigError: chat_format names none.
            GrammarError: answers cannot be held to response_format, or to the parameters of a
                function that must be called.
            ConversationError: the last two messages are the assistant's, the last one is a call, or the
                chat template does not write it.
        """
        chat = Chat.of(super().create_chat_completion, args, kwargs)
        if chat is None:
            return super().create_chat_completion(*args, **kwargs)
        self._asked = chat
        self._held_to = asked_for(chat)
        # llama_cpp would write a grammar of its own, of any length
        written = {} if self._held_to is None else {"response_format": None}
        try:
            asked, wording = self.word(Asked(chat.messages, {**chat.options, **written}))
            with self.worded(wording):
                response = super().create_chat_completion(list(asked.messages), **asked.options)
        except LlamaChatCompletionHandlerNotFoundException as e:
            raise foreign.from_chat_format(self) from e
        finally:
            self._asked = None
            self._held_to = None
        return with_bytes(response) if isinstance(response, dict) else map(with_bytes, response)

    def _create_completion(self, *args: Any, **kwargs: Any) -> Any:
        # other tokenizers do not know a token's bytes; logprobs of a prompt are llama_cpp's
        whole = kwargs["echo"] and kwargs["logprobs"] is not None
        if isinstance(self.tokenizer_, LlamaTokenizer) and not whole:
            # logprobs of an answer need no logits_all, which llama_cpp asks for
            responses = super()._create_completion(*args, **{**kwargs, "logprobs": None})
            responses = self._answer(responses, kwargs)
        else:
            responses = super()._create_completion(*args, **kwargs)
        return self._noting(responses, self._asked)

    def _noting(self, responses: Iterator[Any], chat: Chat | None) -> Iterator[Any]:
        """Passes responses on while it is known what was asked."""
        self._marks.chat = chat
        try:
            yield from responses
        except ValueError as e:
            if "exceed context window" not in str(e) or isinstance(e, SnapKVError):
                raise
            # it ends with llama.cpp's number, which is rounded up
            says = f"{str(e).rpartition(' ')[0]} {self._n_ctx}"
            n_tokens = int(says.partition("(")[2].partition(")")[0])
            raise LongPromptError("prompt", says, n_tokens, self._n_ctx) from e
        finally:
            self._marks.chat = None

    def _answer(self, responses: Iterator[Any], given: dict[str, Any]) -> Iterator[Any]:
        """The responses that llama_cpp would give, from text that is whole.

        Args:
            responses: llama_cpp's own, of which none is taken.
            given: arguments of create_completion().
        """
        prompt, options = self._prepare(responses)
        asked = given["prompt"]
        if not isinstance(asked, str):
            asked = self.detokenize(asked).decode("utf-8", "ignore")
        produced: list[int] = []
        choices = self._choices(prompt, options, given, len(asked), produced)
        head = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.model_path if given["model"] is None else given["model"],
        }
        if given["stream"]:
            for choice in choices:
                yield {**head, "choices": [choice]}
        else:
            parts = list(choices)
            text = "".join(part["text"] for part in parts)
            logprobs = [part["logprobs"] for part in parts if part["logprobs"]]
            choice = {**parts[-1], "text": asked + text if given["echo"] else text}
            if given["logprobs"] is not None:
                choice["logprobs"] = Logprobs.merged(logprobs)
            usage = {"prompt_tokens": len(prompt), "completion_tokens": len(produced)}
            usage["total_tokens"] = len(prompt) + len(produced)
        if self.verbose:
            self._ctx.print_timings()
        if self.cache:
            self.cache[prompt + produced] = self.save_state()
        if not given["stream"]:
            yield {**head, "choices": [choice], "usage": usage}

    def _prepare(self, responses: Iterator[Any]) -> tuple[list[int], dict[str, Any]]:
        """Arguments of generate(), as llama_cpp makes them."""
        self._preparing = True
        try:
            next(responses)
        except _Prepared as found:
            return found.tokens, found.options
        finally:
            self._preparing = False
        raise AssertionError("llama_cpp has not called generate()")

    def _choices(
        self,
        prompt: list[int],
        options: dict[str, Any],
        given: dict[str, Any],
        n_before: int,
        produced: list[int],
    ) -> Iterator[dict[str, Any]]:
        """Pieces of the answer as choices of a stream; only the last has a finish_reason.

        Args:
            n_before: characters before the answer.
            produced: gets the answer's tokens.
        """
        stops = given["stop"] or []
        text = AnswerText([stops] if isinstance(stops, str) else stops)
        n_left = self._n_ctx - len(prompt)
        n_most = min(given["max_tokens"], n_left) if (given["max_tokens"] or 0) > 0 else n_left
        logprobs = None if given["logprobs"] is None else Logprobs(n_before)

        def choice(piece: str, is_last: bool = False) -> Iterator[dict[str, Any]]:
            entries = logprobs.take(text.n_settled, is_last) if logprobs else None
            if piece or entries:
                yield {"text": piece, "index": 0, "logprobs": entries, "finish_reason": None}

        self._cut_short, self.stopped_by, self.answer_tokens = False, None, produced
        reason = None
        with contextlib.closing(self.generate(prompt, **options)) as tokens:
            for token in tokens:
                if self._ends(token):
                    reason = "stop"
                    break
                piece = self.detokenize([token])
                if logprobs is not None:
                    at = len(prompt) + len(produced) - 1
                    logprobs.add(self._token_text(token, at, given["logprobs"]))
                produced.append(token)
                settled = text.add(piece)
                if text.stopped_by is not None:
                    self.stopped_by = text.stopped_by
                    yield from choice(settled, is_last=True)
                    reason = "stop"
                    break
                yield from choice(settled)
                if len(produced) >= n_most:
                    reason = "length"
                    break
        if reason is None:  # stopping_criteria ended it, or the cache is full
            reason = "length" if self._cut_short else "stop"
        yield from choice(text.end(), is_last=True)
        yield {"text": "", "index": 0, "logprobs": None, "finish_reason": reason}

    def _token_text(self, token: int, at: int, n_top: int) -> TokenText:
        """A token and the most likely ones in its place, from the logits at a position."""
        logits = self.scores[at] if self._logits_all else self._logits_at(at)
        found = np.asarray(self.logits_to_logprobs(logits))
        # special tokens have no text in an answer, and a name among others
        tops = [
            TokenText.of(top, self.detokenize([top], special=True), float(found[top]), [])
            for top in likeliest(found, n_top)
        ]
        return TokenText.of(token, self.detokenize([token]), float(found[token]), tops)
