"""A request's prompt: messages in the chat template's words, behind a document, or texts and tokens."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from snapkv_local.errors import SnapKVError
from snapkv_local.prompt import vocabulary
from snapkv_local.prompt.build import SEPARATOR
from snapkv_local.server import template_options, thoughts, tools
from snapkv_local.server.errors import ApiError, refusal
from snapkv_local.server.schemas import ChatRequest, Tool

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama
    from snapkv_local.storage.document import Document


class Prompting:
    """Makes prompts for one model.

    Args:
        llm: the model's.
        documents: that chats may name, by id.

    Attributes:
        template: of chats, in Jinja; "" if the model's file has none.
        thinks: whether answers to chats may begin with thoughts.
    """

    def __init__(self, llm: Llama, documents: Mapping[str, Document]) -> None:
        uses_template = llm.chat_format == "chat_template.default"
        template: str = llm.metadata.get("tokenizer.chat_template", "")
        self.template = template if uses_template else ""
        self.thinks = thoughts.OPEN in self.template
        self._knows_tools = "tools" in self.template
        self._llm = llm
        self._documents = documents

    def conversation(self, llm: Llama, request: ChatRequest) -> tuple[str, list[int]]:
        """A chat's prompt: its text, and its tokens.

        Args:
            llm: of the request.

        Raises:
            ApiError: the template refuses it, or there is no such document.
        """
        from snapkv_local.prompt import template

        messages, options = self.asked(request, tools.offered(request))
        with self.applying(llm, request):
            return template.conversation(llm, messages, **options)

    def asked(
        self, request: ChatRequest, offered: list[Tool]
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What the template is given: messages, and other arguments."""
        messages = tools.to_llama(request.messages, offered, self._knows_tools)
        if request.document is not None:
            messages = self._about(request.document, messages, offered)
        functions = [tool.model_dump(exclude_none=True) for tool in offered]
        return messages, {"tools": functions if functions and self._knows_tools else None}

    @contextlib.contextmanager
    def applying(self, llm: Llama, request: ChatRequest) -> Iterator[None]:
        """While open, the chat template of a Llama reads what the request says.

        Raises:
            ApiError: the template refuses it; templates do that with errors of any kind.
        """
        options = dict(request.chat_template_kwargs or {})
        if request.reasoning_effort is not None and "reasoning_effort" in self.template:
            options.setdefault("reasoning_effort", request.reasoning_effort)
        try:
            with template_options.given(llm, options):
                yield
        except (SnapKVError, ApiError):
            raise
        except Exception as e:
            raise refusal(f"the model's chat template refuses this: {e}", "messages") from e

    def tokens(self, prompt: list[int | str]) -> list[int]:
        """Texts and tokens as tokens; a text at the beginning begins as the model's texts do.

        Raises:
            ApiError: there are none, or one is none of the model's.
        """
        llm = self._llm
        check_tokens(llm, [part for part in prompt if isinstance(part, int)], "prompt")
        begins = isinstance(prompt[0], str) and llm._model.add_bos_token()
        tokens = [llm.token_bos()] if begins else []
        for part in prompt:
            if isinstance(part, int):
                tokens.append(part)
            else:
                tokens += vocabulary.tokens(llm, part.encode(), False, True)
        if not any(prompt):
            raise refusal("the prompt is empty: give at least one token", "prompt")
        return tokens

    def _about(
        self, id_: str, messages: list[dict[str, Any]], offered: list[Tool]
    ) -> list[dict[str, Any]]:
        """Messages, the first one with a document before it.

        Its K and V hold where the prompt begins with it, and would have to be computed elsewhere.
        """
        document = self._documents.get(id_)
        if document is None:
            raise refusal(
                f"there is no document {id_}: GET /v1/documents lists them",
                "document",
                "unknown_document",
            )
        # Llama sees it, too, unless the question is the last one again and needs no row of the file
        error = document.segment.change()
        if error is not None:
            raise error
        if offered:
            raise refusal("a prompt with a document begins with it: leave out tools", "tools")
        first, *rest = messages
        if first["role"] != "user":
            raise refusal(
                "a prompt with a document begins with it: the first message must be a user's, "
                "and may say what else a system message would",
                "messages",
            )
        return [{**first, "content": document.text + SEPARATOR + first["content"]}, *rest]


def check_tokens(llm: Llama, tokens: list[int], field: str) -> None:
    """Refuse tokens that are none of the model's.

    Raises:
        ApiError: which names the field that has one.
    """
    n_vocab = llm.n_vocab()
    if max(tokens, default=0) >= n_vocab:
        raise refusal(f"{field}: the model has token ids up to {n_vocab - 1}", field)
