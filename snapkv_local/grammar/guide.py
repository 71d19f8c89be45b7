"""Holds answers to JSON schemas: the masks of llguidance, from a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api  # noqa: F401  # isort: skip

import llama_cpp

from snapkv_local.grammar.answer_grammar import AnswerGrammar
from snapkv_local.grammar.process import receive, send
from snapkv_local.process import of_module
from snapkv_local.prompt import vocabulary
from snapkv_local.prompt.llm import TokenModel

_SECONDS = 5.0  # that a schema may take, and a token
_SECONDS_START = 120.0  # that the vocabulary may take


class Guide:
    """The process that knows a model's vocabulary.

    It starts when it is first asked, and again after a schema that has ended it.

    Args:
        llm: the model.
        tokenize: as llama_cpp.Llama.tokenize(), whatever documents are open.
    """

    def __init__(self, llm: TokenModel, tokenize: Callable[..., list[int]]) -> None:
        self._llm = llm
        self._tokenize = tokenize
        self._process: subprocess.Popen[bytes] | None = None
        self._vocabulary: bytes | None = None
        self._tokens: list[bytes] = []

    def open(self, grammar: AnswerGrammar) -> npt.NDArray[np.bool_]:
        """Begin an answer.

        Returns:
            bool [n_vocab], the tokens that may come first.

        Raises:
            GrammarError: no answer can be held to it, or not within its limits.
        """
        self._start(grammar)
        return self._mask(grammar, b"G" if grammar.is_gbnf else b"O", grammar.schema.encode())

    def accept(self, grammar: AnswerGrammar, token: int) -> npt.NDArray[np.bool_]:
        """Go on after a token.

        Returns:
            bool [n_vocab], the tokens that may come next.

        Raises:
            GrammarError: the next step is beyond a limit.
        """
        return self._mask(grammar, b"A", token.to_bytes(4, "little"))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _mask(self, grammar: AnswerGrammar, kind: bytes, content: bytes) -> npt.NDArray[np.bool_]:
        mask = self._ask(grammar, kind, content, _SECONDS)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        return bits[: len(self._tokens)].astype(np.bool_)

    def _ask(self, grammar: AnswerGrammar, kind: bytes, content: bytes, seconds: float) -> bytes:
        process = self._process
        if process is None:
            raise grammar.refusal("the process that works on it has ended")
        assert process.stdin is not None and process.stdout is not None
        with _killed_after(process, seconds) as watch:
            try:
                send(process.stdin, kind, content)
                while True:
                    kind, answer = receive(process.stdout)
                    if kind != b"T":
                        break
                    ids = np.array(self._tokens_of(answer), "<i4")
                    send(process.stdin, b"T", ids.tobytes())
            except (EOFError, OSError) as e:
                self.close()
                raise grammar.refusal(
                    f"it takes more than {seconds:.0f} s"
                    if watch.is_set()
                    else "it takes more memory or levels than it may"
                ) from e
        if kind == b"E":
            raise grammar.refusal(answer.decode(errors="replace"))
        return answer

    def _start(self, grammar: AnswerGrammar) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        if self._vocabulary is None:
            self._vocabulary = self._read_vocabulary()
        try:
            self._process = subprocess.Popen(
                of_module("snapkv_local.grammar.process"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as e:
            raise grammar.refusal(f"its process does not start: {e}") from e
        self._ask(grammar, b"V", self._vocabulary, _SECONDS_START)

    def _read_vocabulary(self) -> bytes:
        """As JSON: each token's bytes, which tokens no text is made of, and which end an answer."""
        lib = llama_cpp.llama_cpp
        vocab = lib.llama_model_get_vocab(self._llm.model)
        self._tokens = vocabulary.pieces(self._llm, range(lib.llama_vocab_n_tokens(vocab)))
        not_text = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN
        not_text |= lib.LLAMA_TOKEN_ATTR_UNUSED
        special, ends = [], []
        for token, text in enumerate(self._tokens):
            attributes = lib.llama_vocab_get_attr(vocab, token)
            # user-defined tokens of this form open and close calls, thoughts and the like
            is_mark = attributes & lib.LLAMA_TOKEN_ATTR_USER_DEFINED and (
                text.startswith(b"<") and text.endswith(b">")
            )
            is_end = lib.llama_vocab_is_eog(vocab, token)
            if is_end:
                ends.append(token)
            if is_end or is_mark or attributes & not_text:
                special.append(token)
        known = {"tokens": [text.decode("latin-1") for text in self._tokens]}
        return json.dumps({**known, "special": special, "ends": ends}).encode()

    def _tokens_of(self, text: bytes) -> list[int]:
        """The tokens of a text; none where the model would add a space, or take something away."""
        ids: list[int] = self._tokenize(text, add_bos=False, special=False)
        return ids if b"".join(self._tokens[i] for i in ids) == text else []


@contextlib.contextmanager
def _killed_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """Kills the process after a time; the event says that it did."""
    done = threading.Event()

    def kill() -> None:
        done.set()
        process.kill()

    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield done
    finally:
        timer.cancel()
