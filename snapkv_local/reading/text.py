"""From a file's bytes to text: plain text in UTF-8, UTF-16 or UTF-32, PDF, and DOCX.

What is not text is refused, since a model would read it as one, and nobody would notice.
"""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable
from pathlib import Path

from snapkv_local.errors import TextFileError

# gets a sentence about what was lost of a text that is readable all the same
Warn = Callable[[str], object]

STDIN = Path("-")

# UTF-8 with a few wrong bytes, as logs have them, is still text. One wrong byte in a thousand is far
# less than what a text in Latin-1 or another encoding of a byte a character has.
BYTES_PER_WRONG_ONE = 1000

_ICONV = "convert it, such as with `iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW`"
_GIVE_TEXT = "give plain text, PDF or DOCX"

# the longer marks first: UTF-32's begins like UTF-16's
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)

_KINDS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a picture, sound or video"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"(\xb5/\xfd", "a zstd archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "a SQLite database"),
    (b"\xd0\xcf\x11\xe0", "an Office file of the old format, or one with a password"),
    (b"GGUF", "a model, as the argument MODEL takes it"),
    (b"snapkv\r\n", "a file of snapkv-local, as --document takes it"),
)


def read_text(file: str | Path, warn: Warn | None = None) -> str:
    """Text of a file, each character as it is there, ends of lines included.

    A byte order mark is left out. PDF and DOCX are recognized by their contents and need the extra
    `docs`; other documents, pictures and whatever else is not text are refused.

    Args:
        file: "-" for stdin.
        warn: gets a sentence if little of the text cannot be read: up to one wrong byte of a thousand
            in UTF-8, which is replaced, or pages of a PDF without text. None refuses these.

    Raises:
        TextFileError: it cannot be read, is not text, or is empty.
    """
    path = Path(file)
    name = "stdin" if path == STDIN else str(path)
    data = _read_bytes(path, name)
    if data.startswith(b"%PDF-"):
        from snapkv_local.reading.pdf import read_pdf

        text = read_pdf(data, name, warn)
    elif data.startswith(b"PK\x03\x04"):
        from snapkv_local.reading.docx import read_docx

        text = read_docx(data, name)
    else:
        text = decode(data, name, warn)
    if not text.strip():
        what = "has nothing but white space" if text else "is empty"
        raise TextFileError(name, what, "give a file with text")
    return text


def decode(data: bytes, name: str, warn: Warn | None = None) -> str:
    """Plain text; may be empty.

    Args:
        name: of what the bytes are from, for errors.
        warn: as for read_text().

    Raises:
        TextFileError: it is not text.
    """
    for mark, codec, encoding in _MARKS:
        if data.startswith(mark):
            return _of_mark(data[len(mark) :], codec, encoding, name)
    data = data.removeprefix(codecs.BOM_UTF8)
    if data.startswith(b"{\\rtf"):
        raise TextFileError(name, "is RTF, which is not plain text", _GIVE_TEXT)
    if b"\0" in data:
        raise _no_text(data, name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        return _with_wrong_bytes(data, name, e.start, warn)


def _read_bytes(path: Path, name: str) -> bytes:
    if path != STDIN:
        try:
            return path.read_bytes()
        except OSError as e:
            raise TextFileError(name, f"cannot be read ({e.strerror})", "check the path") from e
    if sys.stdin is None:
        raise TextFileError(name, "is closed", "give a file, or a pipe")
    return sys.stdin.buffer.read()


def _of_mark(data: bytes, codec: str, encoding: str, name: str) -> str:
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as e:
        raise TextFileError(
            name,
            f"begins with the byte order mark of {encoding}, and is not {encoding} at byte {e.start:,}",
            "save it as UTF-8",
        ) from e
    if "\0" in text:
        raise TextFileError(name, f"is not text: it has zeros in its {encoding}", _GIVE_TEXT)
    return text


def _with_wrong_bytes(data: bytes, name: str, first: int, warn: Warn | None) -> str:
    text = data.decode("utf-8", errors="replace")
    mark = "\N{REPLACEMENT CHARACTER}"
    n_wrong = text.count(mark) - data.count(mark.encode())
    if n_wrong * BYTES_PER_WRONG_ONE > len(data) and _kind(data) is not None:
        raise _no_text(data, name)
    if warn is None or n_wrong * BYTES_PER_WRONG_ONE > len(data):
        places = "1 place" if n_wrong == 1 else f"{n_wrong:,} places"
        problem = f"is not UTF-8 at {places} of {len(data):,} bytes, the first at byte {first:,}"
        raise TextFileError(name, problem, _ICONV)
    warn(f"{name}: what is not UTF-8 became {mark}, {n_wrong:,} times, first at byte {first:,}")
    return text


def _no_text(data: bytes, name: str) -> TextFileError:
    kind = _kind(data)
    if kind is not None:
        return TextFileError(name, f"is {kind}, and no text", _GIVE_TEXT)
    n_zeros = data.count(0)
    if 0.3 < n_zeros / len(data) < 0.8:
        return TextFileError(
            name,
            "is not text, or UTF-16 without a byte order mark: it has zero bytes",
            "save it as UTF-8",
        )
    return TextFileError(name, "is not text: it has zero bytes", _GIVE_TEXT)


def _kind(data: bytes) -> str | None:
    return next((kind for magic, kind in _KINDS if data.startswith(magic)), None)
