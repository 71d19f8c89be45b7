"""Completions: generation that ends where no cell can be freed, and what a chat says of its prompt."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import Any

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.guided import GuidedLlama, asked_for  # isort: skip

from llama_cpp.llama_chat_format import LlamaChatCompletionHandlerNotFoundException

from snapkv_local import foreign
from snapkv_local.errors import NoRoomError, PromptError, SnapKVError
from snapkv_local.marks import Chat


class CompletingLlama(GuidedLlama):
    """What Llama adds to llama_cpp's completions."""

    _asked: Chat | None
    _cut_short: tuple[list[int], list[int]] | None

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Any, None]:
        """As llama_cpp.Llama.generate(); ends early where no eviction can free a cell.

        n_prompt is then the number of tokens given here, as it is after prefill().
        """
        self.n_prompt = len(tokens)
        self._marks.begin(self, tokens)
        inner = super().generate(tokens, *args, **kwargs)
        return inner if self.snapkv is None else self._until_full(list(tokens), inner)

    def _until_full(
        self, prompt: list[int], inner: Generator[int, Any, None]
    ) -> Generator[int, Any, None]:
        produced: list[int] = []
        sent = None
        with contextlib.closing(inner):
            while True:
                self._generating = len(produced) > 0
                try:
                    token = inner.send(sent)
                except StopIteration:
                    return
                except NoRoomError:
                    if not produced:
                        raise
                    self._cut_short = (prompt, produced)
                    return
                finally:
                    self._generating = False
                produced.append(token)
                sent = yield token

    def create_chat_completion(self, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama.create_chat_completion(); notes where system prompt and question are.

        Raises:
            ConfigError: chat_format names none.
            GrammarError: answers cannot be held to response_format, or to the parameters of a
                function that must be called.
        """
        self._asked = Chat.of(super().create_chat_completion, args, kwargs)
        self._held_to = asked_for(self._asked)
        if self._held_to is not None:
            # llama_cpp would write a grammar of its own, of any length
            kwargs.pop("response_format", None)
        try:
            return super().create_chat_completion(*args, **kwargs)
        except LlamaChatCompletionHandlerNotFoundException as e:
            raise foreign.from_chat_format(self) from e
        finally:
            self._asked = None
            self._held_to = None

    def _create_completion(self, *args: Any, **kwargs: Any) -> Any:
        responses = super()._create_completion(*args, **kwargs)
        return self._complete(responses, kwargs.get("stream", False), self._asked)

    def _complete(self, responses: Iterator[Any], stream: bool, chat: Chat | None) -> Iterator[Any]:
        """Passes responses on, and mends what llama_cpp does not foresee."""
        self._cut_short = None
        self._marks.chat = chat
        try:
            for response in responses:
                if self._cut_short is not None and not stream:
                    # without streaming it takes the text at a stop or at max_tokens, not when
                    # generate() ends
                    prompt, tokens = self._cut_short
                    text = self.detokenize(tokens, prev_tokens=prompt)
                    response["choices"][0]["text"] += text.decode("utf-8", errors="ignore")
                yield response
        except ValueError as e:
            if "exceed context window" not in str(e) or isinstance(e, SnapKVError):
                raise
            # it ends with llama.cpp's number, which is rounded up
            says = f"{str(e).rpartition(' ')[0]} {self._n_ctx}"
            raise PromptError("prompt", says, "raise {n_ctx} or shorten the prompt") from e
        finally:
            self._marks.chat = None
