"""Holds answers to JSON schemas: the masks of llguidance, from a process of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api  # noqa: F401  # isort: skip

import llama_cpp

from snapkv_local.errors import GrammarError
from snapkv_local.grammar.json_schema import SchemaReader
from snapkv_local.grammar.process import receive, send
from snapkv_local.process import of_module
from snapkv_local.prompt import vocabulary
from snapkv_local.prompt.llm import TokenModel

# seconds for a schema, and for a token
_SECONDS = 5.0
_SECONDS_START = 120.0
_MOST_BYTES = 1024 * 1024
_MOST_NAMED = 3
# words of llguidance, the keywords that they are about, and better words
_REASONS = (
    ("coerce_one_of", {"oneOf"}, "schemas of oneOf may fit the same value; anyOf allows it"),
    ("regex parse error", {"pattern", "patternProperties"}, ""),
    (
        "patternProperty",
        {"patternProperties"},
        "patterns of patternProperties may fit the same name",
    ),
    ("circular references", {"allOf"}, "a $ref leads back to itself"),
)


@dataclass(frozen=True)
class AnswerGrammar:
    """What an answer is held to, in the place of a LlamaGrammar.

    Attributes:
        name: what it is called in errors.
        schema: JSON that llguidance obeys, or GBNF.
        heavy: places of keywords that may be too much.
        is_gbnf: it is GBNF.
    """

    name: str
    schema: str
    heavy: tuple[str, ...] = ()
    is_gbnf: bool = False

    @classmethod
    def of_schema(cls, schema: Any, name: str = "schema") -> AnswerGrammar:
        """For JSON that fits a schema.

        Raises:
            GrammarError: it has a keyword that cannot be obeyed.
        """
        reader = SchemaReader()
        return cls._of(reader, {"allOf": [reader.read(schema, name)]}, name)

    @classmethod
    def of_gbnf(cls, text: str) -> AnswerGrammar:
        """For what llama.cpp's grammars describe.

        Raises:
            GrammarError: it is too long.
        """
        cls._check_length(text, "grammar")
        return cls("grammar", text, is_gbnf=True)

    @classmethod
    def any_object(cls) -> AnswerGrammar:
        """For any JSON object."""
        return cls.of_schema({"type": "object"}, "any JSON object")

    @classmethod
    def of_arguments(cls, parameters: dict[str, Any] | None, name: str) -> AnswerGrammar:
        """For the arguments of a function.

        Raises:
            GrammarError: as of_schema().
        """
        reader = SchemaReader()
        return cls._of(reader, {"allOf": [_arguments(reader, parameters, name)]}, name)

    @classmethod
    def of_calls(cls, functions: list[tuple[str, dict[str, Any] | None]]) -> AnswerGrammar:
        """For {"name": ..., "arguments": ...} of one of these functions.

        Args:
            functions: names and JSON schemas of parameters; None for a function without.

        Raises:
            GrammarError: as of_schema().
        """
        reader = SchemaReader()
        calls = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": name},
                    "arguments": _arguments(reader, parameters, f"{name}.parameters"),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for name, parameters in functions
        ]
        return cls._of(reader, {"anyOf": calls}, "tools")

    @classmethod
    def _of(cls, reader: SchemaReader, part: dict[str, Any], name: str) -> AnswerGrammar:
        text = reader.whole(part)
        cls._check_length(text, name)
        return cls(name, text, tuple(reader.heavy))

    @staticmethod
    def _check_length(text: str, name: str) -> None:
        if len(text) > _MOST_BYTES:
            raise GrammarError(name, f"has more than {_MOST_BYTES:,} bytes", "use a smaller one")

    def refusal(self, reason: str) -> GrammarError:
        """What it is refused with; names the keywords that the reason is about, if it says so."""
        for words, keywords, plain in _REASONS:
            if words in reason:
                named = [at for at in self.heavy if at.rpartition(".")[2] in keywords]
                reason = plain or reason.rpartition("error: ")[2]
                break
        else:
            named = list(self.heavy)
        reason = " ".join(reason.split())[:300].rstrip(" .")
        more = ", ..." if len(named) > _MOST_NAMED else ""
        if self.is_gbnf:
            return GrammarError(
                self.name,
                f"answers cannot be held to this GBNF: {reason}",
                "correct or simplify it",
            )
        return GrammarError(
            self.name,
            f"answers cannot be held to this JSON schema: {reason}",
            f"look at {', '.join(named[:_MOST_NAMED])}{more}" if named else "use a simpler schema",
        )


def _arguments(reader: SchemaReader, parameters: dict[str, Any] | None, name: str) -> Any:
    if not parameters:
        return {"type": "object", "additionalProperties": False}
    if parameters.get("type", "object") != "object":
        raise GrammarError(
            f"{name}.type", 'is not "object"', "the arguments of a function are an object"
        )
    return {"allOf": [reader.read(parameters, name), {"type": "object"}]}


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
