"""What a request does with the Llama. All of it runs on the worker's thread."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import SnapKVError
from snapkv_local.llama.usage import Usage
from snapkv_local.policies.policy import OF_THE_ENGINE
from snapkv_local.prompt.build import SEPARATOR
from snapkv_local.server import grammar, tools
from snapkv_local.server.errors import ApiError, refusal
from snapkv_local.server.schemas import (
    ChatRequest,
    CommonRequest,
    CompletionRequest,
    Overrides,
    Tool,
)
from snapkv_local.server.worker import Chunk, Done, Event, Job, Progress

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama
    from snapkv_local.storage.document import Document

# seconds between two reports of a prefill
_REPORT_EVERY = 0.1


Load = Callable[[], "tuple[Llama, Mapping[str, Document]]"]


class Engine:
    """One Llama and what it is called.

    Args:
        load: makes the Llama, and gives it with the documents that are open in it, by id.
        model: name in answers.
        max_tokens: of an answer, at most; None for what the context allows.

    Attributes:
        documents: that requests may name, by id; none before load().
    """

    def __init__(self, load: Load, model: str, max_tokens: int | None) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.documents: Mapping[str, Document] = {}
        self._load = load

    def load(self) -> None:
        """Load the model; everything else needs it."""
        self.llm, self.documents = self._load()
        self.config = self.llm.snapkv
        self.n_ctx = self.llm.n_ctx()
        template = self.llm.metadata.get("tokenizer.chat_template", "")
        uses_template = self.llm.chat_format == "chat_template.default"
        self._template_knows_tools = uses_template and "tools" in template

    def is_whole(self) -> bool:
        """Whether the model's file is what was loaded; from any thread."""
        return self.llm.model_change() is None

    def close(self) -> None:
        """Free the model, if it was loaded."""
        if hasattr(self, "llm"):
            self.llm.close()

    def complete(self, request: CompletionRequest, job: Job) -> Iterator[Event]:
        """Answer POST /v1/completions."""
        prompt: Any = request.prompt
        if isinstance(prompt, list) and isinstance(prompt[0], str):
            prompt = prompt[0]
        if not prompt:
            raise refusal("the prompt is empty: give at least one token", "prompt")
        if isinstance(prompt, list):
            self._check_tokens(prompt, "prompt")
        self._check_logprobs(request.logprobs is not None)

        def start(arguments: dict[str, Any]) -> Any:
            arguments.setdefault("max_tokens", 16)  # OpenAI's default
            return self.llm.create_completion(prompt, logprobs=request.logprobs, **arguments)

        yield from self._answer(request, job, start)

    def chat(self, request: ChatRequest, job: Job) -> Iterator[Event]:
        """Answer POST /v1/chat/completions."""
        if request.messages[-1].tool_calls:
            raise refusal("the last message is a call: append the function's result", "messages")
        offered = tools.offered(request)
        answer_grammar = grammar.of(self.llm, request, offered)
        native = self._template_knows_tools
        messages = tools.to_llama(request.messages, offered, native)
        if request.document is not None:
            messages = self._about(request.document, messages, offered)
        self._check_logprobs(bool(request.logprobs))

        def start(arguments: dict[str, Any]) -> Any:
            if request.max_completion_tokens is not None:
                arguments["max_tokens"] = self._cap(request.max_completion_tokens)
            chunks: Any = self.llm.create_chat_completion(
                messages,
                tools=[tool.model_dump(exclude_none=True) for tool in offered]
                if offered and native
                else None,
                grammar=answer_grammar,
                logprobs=request.logprobs,
                top_logprobs=request.top_logprobs or 0,
                **arguments,
            )
            return tools.with_calls(chunks, offered) if offered else chunks

        yield from self._answer(request, job, start)

    def _about(
        self, id_: str, messages: list[dict[str, Any]], offered: list[Tool]
    ) -> list[dict[str, Any]]:
        """Messages, the first one with a document before it.

        Its K and V hold where the prompt begins with it, and would have to be computed elsewhere.
        """
        document = self.documents.get(id_)
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

    def _answer(
        self, request: CommonRequest, job: Job, start: Callable[[dict[str, Any]], Any]
    ) -> Iterator[Event]:
        llm = self.llm
        self._configure(request.snapkv)
        if not request.cache_prompt:
            self._forget()
        before = llm.last_prefill
        started = time.monotonic()
        llm.prefill_progress = _Reporter(job)
        llm.on_token = job.check  # tokens that give no text yet make no chunk
        try:
            chunks = self._start(request, start)
            seconds_prefill = None
            for chunk in chunks:
                if seconds_prefill is None:
                    seconds_prefill = time.monotonic() - started
                yield Chunk({**chunk, "model": self.model})
            stats = llm.last_prefill
            yield Done(self._usage(seconds_prefill or 0.0, stats is not before))
        finally:
            llm.prefill_progress = None
            llm.on_token = None

    def _start(self, request: CommonRequest, start: Callable[[dict[str, Any]], Any]) -> Any:
        names = (
            *("temperature", "top_p", "top_k", "min_p", "typical_p", "stop", "max_tokens"),
            *("presence_penalty", "frequency_penalty", "repeat_penalty"),
        )
        given = {name: getattr(request, name) for name in names}
        arguments = {name: value for name, value in given.items() if value is not None}
        if "max_tokens" in arguments or self.max_tokens is not None:
            arguments["max_tokens"] = self._cap(arguments.get("max_tokens"))
        if request.logit_bias is not None:
            bias = {int(token): value for token, value in request.logit_bias.items()}
            self._check_tokens(list(bias), "logit_bias")
            arguments["logit_bias"] = bias
        if request.seed is not None:
            arguments["seed"] = request.seed % 2**32
        try:
            return start({**arguments, "stream": True})
        except (SnapKVError, ApiError):
            raise
        # llama_cpp applies the chat template here; templates refuse with errors of any kind
        except Exception as e:
            raise refusal(f"the model's chat template refuses this: {e}", "messages") from e

    def _cap(self, n: int | None) -> int:
        """Tokens of an answer; 0 for what the context allows."""
        return min(n or self.max_tokens or 0, self.max_tokens or n or 0)

    def _configure(self, overrides: Overrides | None) -> None:
        given = {} if overrides is None else overrides.model_dump(exclude_none=True)
        if self.config is None:
            if given:
                raise refusal("this server keeps the full cache: leave out snapkv", "snapkv")
            return
        if "keep_ratio" in given and "budget" not in given:
            given["budget"] = None
        if "budget" in given and "keep_ratio" not in given:
            given["keep_ratio"] = None
        if given.get("policy", "snapkv") != "snapkv":
            # a policy of the request's has none of the options that the server gave its own
            own = {name: getattr(SnapKVConfig, name) for name in OF_THE_ENGINE}
            given = {**own, **given}
        config = dataclasses.replace(self.config, **given)
        if config != self.llm.snapkv:
            self.llm.set_snapkv(config)

    def _forget(self) -> None:
        """What was evaluated before; a document's file is not of a request."""
        self.llm.reset()  # type: ignore[no-untyped-call]
        if self.llm.snapkv is not None and self.llm.snapkv.vault != "off":
            self.llm.clear_vault()

    def _check_tokens(self, tokens: list[int], field: str) -> None:
        n_vocab = self.llm.n_vocab()
        if max(tokens, default=0) >= n_vocab:
            raise refusal(f"{field}: the model has token ids up to {n_vocab - 1}", field)

    def _check_logprobs(self, asked: bool) -> None:
        if asked and not self.llm._logits_all:
            raise refusal(
                "this server keeps no logits of earlier tokens: start it with --logprobs",
                "logprobs",
            )

    def _usage(self, seconds_prefill: float, is_new: bool) -> dict[str, Any]:
        used, stats = Usage.of(self.llm), self.llm.last_prefill
        return {
            "prompt_tokens": used.n_prompt,
            "completion_tokens": used.n_generated,
            "total_tokens": used.n_prompt + used.n_generated,
            "prompt_tokens_details": {"cached_tokens": used.n_cached},
            "snapkv": {
                "n_prompt": used.n_prompt,
                "n_kept": used.n_kept,
                "n_cached": used.n_cached,
                "bytes_kv": used.bytes_kv,
                "bytes_decode_cells": used.bytes_decode_cells,
                "bytes_kv_full": used.bytes_kv_full,
                "coverage": stats.coverage if stats else 1.0,
                "seconds_prefill": seconds_prefill,
                "layer_group": stats.layer_group if stats else 0,
                "compressed_now": is_new and stats is not None,
            },
        }


class _Reporter:
    """A prefill's progress, for its job. Raises what ends the job, which ends the prefill."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.next = 0.0

    def __call__(self, done: int, total: int) -> None:
        self.job.check()
        now = time.monotonic()
        if now >= self.next:
            self.next = now + _REPORT_EVERY
            self.job.emit(Progress(done, total))
