"""The process that works on JSON schemas: which tokens may come next?

It is one of its own, since no schema is to end the process that serves it: a stack that overflows,
a compilation of minutes or memory without end end this one, and Guide says so. It talks in frames
through stdin and stdout: a letter, the length of what follows in 4 bytes, and that.

    V  the vocabulary, as JSON       D  done
    O  a schema, as JSON             M  the mask of the first token
    G  a grammar, as GBNF            M  the mask of the first token
    A  a token, in 4 bytes           M  the mask of the next one
    T  tokens of a text, int32       (the answer to T)
                                     T  a text, whose tokens are asked for
                                     E  why it does not work

A mask has a bit for each token, the lowest bit of a byte first.
"""

from __future__ import annotations

import json
import re
import signal
import struct
import sys
import threading
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# models put as much into answers for ever, if they may
_BLANK = r"[ ]|\n[ \t]{0,20}"
# of GBNF; a backslash that is escaped itself begins none
_ESCAPED = re.compile(r"\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})|\\\\")
_MEMORY = 2 * 1024**3  # bytes
_STACK = 64 * 1024**2  # bytes
# an object of _MOST_PROPERTIES that may all be left out has 4 items for each
_MOST_ITEMS_IN_ROW = 5_000


def send(stream: IO[bytes], kind: bytes, content: bytes = b"") -> None:
    """Write a frame."""
    stream.write(kind + struct.pack("<I", len(content)) + content)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[bytes, bytes]:
    """Read a frame.

    Raises:
        EOFError: the other side has gone.
    """
    head = stream.read(5)
    if len(head) < 5:
        raise EOFError
    (n,) = struct.unpack("<I", head[1:])
    content = stream.read(n)
    if len(content) < n:
        raise EOFError
    return head[:1], content


class _Refused(Exception):
    """With the library's reason."""


class _Tokenizer:
    """What llguidance asks for: the vocabulary, and a text's tokens, which the model knows."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, vocabulary: dict[str, Any], asks: IO[bytes], answers: IO[bytes]) -> None:
        self.tokens = [token.encode("latin-1") for token in vocabulary["tokens"]]
        self.special_token_ids = vocabulary["special"]
        self.eos_token_id = vocabulary["ends"][0]
        self.longest: Callable[[str], list[int]] | None = None
        self._asks = asks
        self._answers = answers

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.encode() if isinstance(text, str) else text
        send(self._asks, b"T", text)
        _, ids = receive(self._answers)
        if ids:
            return list(struct.unpack(f"<{len(ids) // 4}i", ids))
        assert self.longest is not None
        return self.longest(text.decode(errors="replace"))


class _Session:
    """One schema after the other."""

    def __init__(self, vocabulary: dict[str, Any], asks: IO[bytes], answers: IO[bytes]) -> None:
        from llguidance import LLParserLimits, LLTokenizer

        tokenizer: Any = _Tokenizer(vocabulary, asks, answers)
        self._tokenizer: LLTokenizer = LLTokenizer(tokenizer, eos_token=vocabulary["ends"])
        tokenizer.longest = self._tokenizer.greedy_tokenize
        self._limits = LLParserLimits(max_items_in_row=_MOST_ITEMS_IN_ROW, verbose_errors=False)
        self._opened = (b"", b"")
        self._matcher: LLMatcher | None = None

    def open(self, kind: bytes, content: bytes) -> bytes:
        """The mask of the first token."""
        from llguidance import LLMatcher

        if self._matcher is None or self._opened != (kind, content):
            self._matcher = None
            try:
                grammar = _read(kind, content.decode())
            except (ValueError, GbnfToLarkError) as e:
                raise _Refused(str(e)) from e
            self._matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
            self._opened = (kind, content)
        else:
            self._matcher.reset()
        return self._mask()

    def accept(self, token: int) -> bytes:
        """The mask after a token."""
        assert self._matcher is not None
        self._matcher.consume_token(token)
        return self._mask()

    def _mask(self) -> bytes:
        assert self._matcher is not None
        mask = b"" if self._matcher.is_error() else self._matcher.compute_bitmask()
        if self._matcher.is_error() or not any(mask):
            error, self._matcher = self._matcher.get_error(), None
            raise _Refused(error or "no JSON fits it")
        return mask


def _unescaped(found: re.Match[str]) -> str:
    """A character in the place of its number, which gbnf_to_lark would write without leading zeros."""
    digits = found[1] or found[2]
    if digits is None:
        return found[0]
    code = int(digits, 16)
    return chr(code) if code > 0x7F else f"\\x{code:02x}"


def _read(kind: bytes, text: str) -> str:
    """A grammar as llguidance takes it."""
    from llguidance import LLMatcher

    if kind == b"G":
        return LLMatcher.grammar_from_lark(gbnf_to_lark(_ESCAPED.sub(_unescaped, text)))
    return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _BLANK})


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    session: _Session | None = None
    while True:
        try:
            kind, content = receive(requests)
        except EOFError:
            return
        try:
            if kind == b"V":
                session = _Session(json.loads(content), answers, requests)
                send(answers, b"D")
                continue
            assert session is not None
            if kind == b"A":
                mask = session.accept(struct.unpack("<i", content)[0])
            else:
                mask = session.open(kind, content)
            send(answers, b"M", mask)
        except _Refused as e:
            send(answers, b"E", str(e).encode())
        # a panic in Rust is none of Exception
        except BaseException as e:
            send(answers, b"E", f"{type(e).__name__}: {e}".encode())


def main() -> None:
    """Serve until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY or soft > _MEMORY:
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, hard))
    except (ImportError, ValueError, OSError):
        pass  # not on Windows, and not everywhere for memory
    threading.stack_size(_STACK)
    thread = threading.Thread(target=_serve, args=(sys.stdin.buffer, sys.stdout.buffer))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
