"""Cuts a text into passages: sentences, lines, paragraphs or functions."""

from __future__ import annotations

import ast
import re
from pathlib import PurePath
from typing import Literal, get_args

from snapkv_local.errors import ConfigError

Unit = Literal["auto", "sentence", "function", "line", "paragraph"]
UNITS: tuple[str, ...] = get_args(Unit)

Range = tuple[int, int]  # begin and end in the text, in characters

PYTHON = {".py", ".pyi", ".pyw"}
# fmt: off
BRACES = {
    ".c", ".cc", ".cpp", ".cs", ".cu", ".cuh", ".cxx", ".dart", ".go", ".h", ".hpp", ".java", ".js",
    ".jsx", ".kt", ".m", ".metal", ".mjs", ".mm", ".php", ".rs", ".scala", ".swift", ".ts", ".tsx",
    ".zig",
}
# fmt: on
INDENTED = {".rb", ".lua", ".jl", ".pyx", ".ex", ".exs", ".nim", ".gd"}

_SENTENCE_END = re.compile(
    # closing and opening quotation marks, and full-width punctuation
    r"[.!?…]+[\"'”\u2019)\]]*(?=\s+[\"'“\u2018(\[]?[^\W_a-z])|[。\uff01\uff1f]+[」』”]?"
    r"|(?=\n[ \t]*(?:[-*•]|\d+[.)])[ \t])"
)
# what ends with a full stop and is no sentence's end
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|No|Fig|vs|cf|e\.g|i\.e|approx)\.$"
)
_PARAGRAPH = re.compile(r"\S(?:.|\n(?![ \t]*\r?\n))*")
_LINE = re.compile(r"[^\r\n]+")
_DEFINITION = re.compile(
    r"[ \t]*(?:(?:pub|local|async|export|private|public|static)\s+)*"
    r"(?:def|defp|function|func|fn|sub|proc|macro|cpdef|cdef)\b"
)
_NO_FUNCTION = re.compile(
    r"\b(?:if|for|while|switch|catch|else|do|try|class|struct|enum|union|namespace|interface"
    r"|match|loop|foreach|extern|trait|impl|module|synchronized|lock|using)\b"
)
# comments and strings, whose braces and semicolons mean nothing
_NO_CODE = re.compile(
    r"//[^\n]*|/\*.*?(?:\*/|\Z)|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n]){1,12}'|`(?:\\.|[^`\\])*`",
    re.DOTALL,
)


def cut(text: str, unit: Unit = "auto", name: str = "") -> list[Range]:
    """Passages of a text, in order and without empty ones.

    Args:
        text: of a document or of source code.
        unit: "auto" takes functions for names of source code that has some, paragraphs for source
            code without, else sentences. Functions of Python are found by its parser; those of other
            languages by braces or indentation, which is a guess. Nested ones belong to the outer one.
        name: a file's, whose suffix names the language.

    Raises:
        ConfigError: unit is not known, or functions are asked for and there are none.
    """
    if unit not in UNITS:
        raise ConfigError(f"unit={unit!r}", "is not known", f"choose one of {', '.join(UNITS)}")
    suffix = PurePath(name).suffix.lower()
    if unit == "function" or (unit == "auto" and suffix in PYTHON | BRACES | INDENTED):
        found = functions(text, suffix)
        if not found and unit == "function":
            raise ConfigError(
                f"unit='function' for {name or 'the text'}", "no function is in it", "use 'line'"
            )
        return found or paragraphs(text)
    if unit == "line":
        return _trimmed(text, [match.span() for match in _LINE.finditer(text)])
    return paragraphs(text) if unit == "paragraph" else sentences(text)


def functions(text: str, suffix: str) -> list[Range]:
    """Functions and methods of source code in the language of a file's suffix."""
    if suffix in BRACES:
        return brace_functions(text)
    if suffix not in INDENTED:
        try:
            return python_functions(text)
        except (SyntaxError, ValueError):
            pass  # another language; or Python of another version or unfinished: by indentation
    if suffix in PYTHON | INDENTED:
        return indented_functions(text)
    return brace_functions(text) or indented_functions(text)


def python_functions(text: str) -> list[Range]:
    """Functions and methods with their decorators, and classes that have no methods.

    Raises:
        SyntaxError, ValueError: the text is no Python.
    """
    # lines as Python counts them; str.splitlines() knows more ends of lines
    starts = [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", text))]
    found: list[Range] = []

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                before = len(found)
                visit(node.body)
                if len(found) == before:
                    found.append(whole(node))
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.append(whole(node))
            else:
                # definitions under if, try, with and match
                for field in ("body", "orelse", "finalbody"):
                    visit(getattr(node, field, []))
                for part in (*getattr(node, "handlers", []), *getattr(node, "cases", [])):
                    visit(part.body)

    def whole(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Range:
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        last = node.end_lineno or first
        return starts[first - 1], starts[last] if last < len(starts) else len(text)

    visit(ast.parse(text.removeprefix("\ufeff")).body)
    if text.startswith("\ufeff"):
        found = [(max(a, 1), b) for a, b in found]
    return sorted(_trimmed(text, found))


def brace_functions(text: str) -> list[Range]:
    """Blocks in braces after something with parentheses, with the comment before them."""
    code = _NO_CODE.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)
    found: list[Range] = []
    # inside: the depth around the function that is open
    depth, inside, begin, start = 0, None, 0, 0
    for match in re.finditer(r"[{};]|^[ \t]*#[^\n]*", code, re.MULTILINE):
        kind = match[0][-1] if len(match[0]) == 1 else "#"
        if kind == "{":
            header = code[begin : match.start()]
            if inside is None and "(" in header and not _NO_FUNCTION.search(header):
                inside, start = depth, begin
            depth += 1
        elif kind == "}":
            depth = max(depth - 1, 0)
            if inside is not None and depth == inside:
                found.append((start, match.end()))
                inside = None
        if inside is None:
            begin = match.end()
    return _trimmed(text, found)


def indented_functions(text: str) -> list[Range]:
    """From a line that begins a definition to the last line that is indented below it."""
    found: list[Range] = []
    open_at: tuple[int, int, int] | None = None  # begin, indentation, end so far
    for match in re.finditer(r"[^\n]*\n|[^\n]+", text):
        line = match[0]
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if open_at is not None and indent <= open_at[1]:
            closes = re.match(r"\s*end\b", line) is not None
            found.append((open_at[0], match.end() if closes else open_at[2]))
            open_at = None
            if closes:
                continue
        if open_at is not None:
            open_at = (open_at[0], open_at[1], match.end())
        elif _DEFINITION.match(line):
            open_at = (match.start(), indent, match.end())
    if open_at is not None:
        found.append((open_at[0], open_at[2]))
    return _trimmed(text, found)


def paragraphs(text: str) -> list[Range]:
    """What stands between empty lines."""
    return _trimmed(text, [match.span() for match in _PARAGRAPH.finditer(text)])


def sentences(text: str) -> list[Range]:
    """Sentences; none goes on over an empty line, and an item of a list begins one."""
    found: list[Range] = []
    for begin, end in paragraphs(text):
        at = begin
        for match in _SENTENCE_END.finditer(text, begin, end):
            if not _ABBREVIATION.search(text[at : match.end()]):
                found.append((at, match.end()))
                at = match.end()
        found.append((at, end))
    return _trimmed(text, found)


def _trimmed(text: str, ranges: list[Range]) -> list[Range]:
    """Without white space at either end, and without what is nothing else."""
    found = []
    for begin, end in ranges:
        part = text[begin:end]
        begin += len(part) - len(part.lstrip())
        if part.strip():
            found.append((begin, begin + len(part.strip())))
    return found
