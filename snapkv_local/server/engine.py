"""What requests do with the Llama: each on a thread of the worker, with a conversation of the pool."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snapkv_local.config import SnapKVConfig
from snapkv_local.llama.usage import Usage
from snapkv_local.prompt import vocabulary
from snapkv_local.server import grammar, thoughts, tools
from snapkv_local.server.answering import Answering, Start
from snapkv_local.server.common import CommonRequest
from snapkv_local.server.defaults import Defaults
from snapkv_local.server.errors import refusal
from snapkv_local.server.place import Place
from snapkv_local.server.pool import Pool
from snapkv_local.server.prompting import Prompting, check_tokens
from snapkv_local.server.schemas import ChatRequest, CompletionRequest, NativeRequest, prompts
from snapkv_local.server.worker import Began, Chunk, Done, Event, Found, Job

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama
    from snapkv_local.server.resting import Resting
    from snapkv_local.stats import PrefillStats
    from snapkv_local.storage.document import Document

_MOST_PROMPTS = 64

Load = Callable[[], "tuple[Llama, Mapping[str, Document], Resting]"]


class Engine:
    """One Llama and what it is called.

    Args:
        load: makes the Llama, and gives it with the documents that are open in it, by id, and with where
            conversations rest.
        model: name in answers.
        max_tokens: of an answer, at most; None for what the context allows.
        sampling: how tokens are drawn where a request does not say it: fields of Draws. A seed of -1
            is another one each time.

    Attributes:
        documents: that requests may name, by id; none before load().
        pool: of conversations; this and the next two are there after load().
        defaults: what holds where a request does not say it.
        prompting: makes prompts of requests.
        fingerprint: of the engine, in answers.
    """

    def __init__(
        self,
        load: Load,
        model: str,
        max_tokens: int | None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self._sampling = dict(sampling or {})
        self.documents: Mapping[str, Document] = {}
        self.fingerprint = "b0"
        self._load = load

    def load(self) -> int:
        """Load the model; everything else needs it. How many requests may run at once."""
        from snapkv_local.native import devices

        self.llm, self.documents, resting = self._load()
        self.llm.control_words()  # which all conversations then know
        resting.open()
        self.pool = Pool(self.llm, resting)
        self.defaults = Defaults(self.llm, self._sampling)
        self.prompting = Prompting(self.llm, self.documents)
        self.n_ctx = self.llm.n_ctx()
        self.fingerprint = devices.build_name()
        self.file_name = Path(self.llm.model_path).name
        return len(self.pool.places)

    def is_whole(self) -> bool:
        """Whether the model's file is what was loaded; from any thread."""
        return self.llm.model_change() is None

    def close(self) -> None:
        """Free the model, if it was loaded."""
        if hasattr(self, "pool"):
            self.pool.close()
            self.llm.close()

    def tokens(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Of a text; from any thread."""
        return vocabulary.tokens(self.llm, text.encode(), add_special, parse_special)

    def pieces(self, tokens: list[int]) -> list[bytes]:
        """What each token spells; from any thread.

        Raises:
            ApiError: one is none of the model's.
        """
        check_tokens(self.llm, tokens, "tokens")
        return vocabulary.pieces(self.llm, tokens)

    def sizes(self) -> dict[str, Any]:
        """Of the model, as llama-server has them."""
        import llama_cpp as lib

        model = self.llm.model
        return {
            "vocab_type": int(lib.llama_vocab_type(lib.llama_model_get_vocab(model))),
            "n_vocab": self.llm.n_vocab(),
            "n_ctx": self.n_ctx,
            "n_ctx_train": int(lib.llama_model_n_ctx_train(model)),
            "n_embd": int(lib.llama_model_n_embd(model)),
            "n_params": int(lib.llama_model_n_params(model)),
            "size": int(lib.llama_model_size(model)),
        }

    def complete(self, request: CompletionRequest, job: Job) -> Iterator[Event]:
        """Answer POST /v1/completions."""
        if request.echo and request.logprobs is not None:
            raise refusal("logprobs of a prompt are not kept: leave out echo or logprobs", "echo")
        most = 16 if request.max_tokens is None else request.max_tokens  # OpenAI's default
        with self.pool.llama() as llm:
            yield from self._complete(llm, request, job, most, request.logprobs, echo=request.echo)

    def native(self, request: NativeRequest, job: Job) -> Iterator[Event]:
        """Answer POST /completion."""
        n_probs = request.n_probs or None
        with self.pool.llama() as llm:
            most = request.max_tokens
            yield from self._complete(llm, request, job, most, n_probs, needs_prompt=True)

    def chat(self, request: ChatRequest, job: Job) -> Iterator[Event]:
        """Answer POST /v1/chat/completions, and what other APIs make of it."""
        if request.messages and request.messages[-1].tool_calls:
            raise refusal("the last message is a call: append the function's result", "messages")
        with self.pool.llama() as llm:
            yield from self._chat(llm, request, job)

    def _chat(self, llm: Llama, request: ChatRequest, job: Job) -> Iterator[Event]:
        offered = tools.offered(request)
        answer_grammar = grammar.of(llm, request, offered)
        messages, options = self.prompting.asked(request, offered)
        # a grammar has no room for thoughts
        thinks = (
            self.prompting.thinks and request.reasoning_format != "none" and answer_grammar is None
        )
        most = request.max_completion_tokens or request.max_tokens
        arguments = {
            "grammar": answer_grammar,
            "logprobs": request.logprobs,
            "top_logprobs": request.top_logprobs or 0,
            **self._arguments(request, most),
        }

        def start() -> Iterator[dict[str, Any]]:
            with self.prompting.applying(llm, request):
                chunks: Any = llm.create_chat_completion(messages, **options, **arguments)
            chunks = map(_with_null_content, chunks)
            if thinks:
                chunks = thoughts.with_thoughts(chunks, lambda: _has_begun_to_think(llm))
            return tools.with_calls(chunks, offered) if offered else chunks

        yield from self._answers(llm, request, job, [start], request.verbose)

    def count(self, request: ChatRequest, _job: Job) -> Iterator[Event]:
        """Count the tokens of a chat's prompt."""
        with self.pool.llama() as llm:
            yield Found({"input_tokens": len(self.prompting.conversation(llm, request)[1])})

    def apply_template(self, request: ChatRequest, _job: Job) -> Iterator[Event]:
        """Show a chat's prompt."""
        with self.pool.llama() as llm:
            yield Found({"prompt": self.prompting.conversation(llm, request)[0]})

    def _complete(
        self,
        llm: Llama,
        request: CompletionRequest | NativeRequest,
        job: Job,
        most: int | None,
        logprobs: int | None,
        echo: bool = False,
        needs_prompt: bool = False,
    ) -> Iterator[Event]:
        given = prompts(request.prompt)
        if len(given) * request.n > _MOST_PROMPTS:
            raise refusal(f"more than {_MOST_PROMPTS} answers: send fewer prompts", "prompt")
        asked = [self.prompting.tokens(prompt) for prompt in given]
        arguments = {
            "grammar": grammar.of(llm, request),
            "logprobs": logprobs,
            **self._arguments(request, most),
        }

        def starting(tokens: list[int]) -> Start:
            def start() -> Iterator[dict[str, Any]]:
                chunks: Any = llm.create_completion(tokens, **arguments)
                return self._echoed(tokens, chunks) if echo else chunks

            return start

        starts = [starting(tokens) for tokens in asked]
        yield from self._answers(llm, request, job, starts, needs_prompt or request.verbose)

    def _echoed(self, tokens: list[int], chunks: Iterator[Any]) -> Iterator[dict[str, Any]]:
        said = False
        for chunk in chunks:
            if not said:
                said = True
                text = self.llm.detokenize(tokens).decode("utf-8", "ignore")
                choice = {**chunk["choices"][0], "text": text, "finish_reason": None}
                yield {**chunk, "choices": [{**choice, "logprobs": None}]}
            yield chunk

    def _answers(
        self,
        llm: Llama,
        request: CommonRequest,
        job: Job,
        starts: list[Start],
        needs_prompt: bool,
    ) -> Iterator[Event]:
        """Answers, one after the other: n of each start."""
        config = self.defaults.compression(request.snapkv)
        compressed = False
        with Answering(llm, request, self.defaults.draws(request), job) as answering:
            for index in range(len(starts) * request.n):
                start, is_new = starts[index // request.n], index % request.n == 0
                placed: list[tuple[Place, PrefillStats | None]] = []
                llm.place = self._placing(llm, request, config, job, is_new, placed)
                for event in answering.answer(index, start, is_new, needs_prompt):
                    if isinstance(event, Chunk):
                        named = {"model": self.model, "system_fingerprint": self.fingerprint}
                        event = dataclasses.replace(event, data={**event.data, **named})
                    elif isinstance(event, Began):
                        event = dataclasses.replace(event, conversation=placed[-1][0].id)
                    yield event
                place, before = placed[-1]
                compressed |= llm.last_prefill is not None and llm.last_prefill is not before
            usage = self._usage(llm, answering, compressed, place)
            place.figures = usage["snapkv"]
            yield Done(usage, answering.timings.json())

    def _placing(
        self,
        llm: Llama,
        request: CommonRequest,
        config: SnapKVConfig | None,
        job: Job,
        is_new: bool,
        placed: list[tuple[Place, PrefillStats | None]],
    ) -> Callable[[Sequence[int]], None]:
        """What gives an answer's prompt its conversation, and notes which, with its last prefill."""
        fresh = is_new and not request.cache_prompt

        def place(tokens: Sequence[int]) -> None:
            index = request.id_slot if request.id_slot >= 0 else None
            found = self.pool.place(llm, tokens, config, index=index, fresh=fresh, check=job.check)
            placed.append((found, llm.last_prefill))

        return place

    def _arguments(self, request: CommonRequest, most: int | None) -> dict[str, Any]:
        """Of create_completion() and create_chat_completion(), whatever is asked for."""
        most = min(most or self.max_tokens or 0, self.max_tokens or most or 0)
        return {"max_tokens": most, "stop": request.stops(), "stream": True}

    def _usage(
        self, llm: Llama, answering: Answering, compressed: bool, place: Place
    ) -> dict[str, Any]:
        used, stats = Usage.of(llm), llm.last_prefill
        n_prompt, n_generated = answering.n_prompt, answering.n_generated
        figures = {
            "n_prompt": used.n_prompt,
            "n_kept": used.n_kept,
            "n_cached": used.n_cached,
            "bytes_kv": used.bytes_kv,
            "bytes_decode_cells": used.bytes_decode_cells,
            "bytes_kv_full": used.bytes_kv_full,
            "coverage": stats.coverage if stats else 1.0,
            "seconds_prefill": answering.timings.prompt,
            "layer_group": stats.layer_group if stats else 0,
            "compressed_now": compressed,
            "conversation": place.id,
        }
        return {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_generated,
            "total_tokens": n_prompt + n_generated,
            "prompt_tokens_details": {"cached_tokens": answering.n_cached},
            "snapkv": figures,
        }


def _with_null_content(chunk: dict[str, Any]) -> dict[str, Any]:
    """The first chunk of a chat as OpenAI and llama-server have it."""
    choice = chunk["choices"][0]
    if "role" not in choice["delta"]:
        return chunk
    delta = {"role": choice["delta"]["role"], "content": None}
    return {**chunk, "choices": [{**choice, "delta": delta}]}


def _has_begun_to_think(llm: Llama) -> bool:
    end = llm._input_ids[max(0, llm.n_prompt - 8) : llm.n_prompt].tolist()
    return llm.detokenize(end, special=True).rstrip().endswith(thoughts.OPEN.encode())
