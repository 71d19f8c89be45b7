"""The format of one patch: a header in the manner of Debian's DEP-3, then a unified diff.

Applying is strict: a hunk fits at its line or not at all. It needs no program, since `git apply`
inside another repository skips patches and still exits 0, and `patch` is missing on many machines.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

FIELDS = ("Description", "Why", "Hooks", "Files")
HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
NO_NEWLINE = "\\ No newline at end of file\n"


class PatchError(Exception):
    """A patch is malformed or does not fit; the message names it and says what to do."""


@dataclass(frozen=True)
class Hunk:
    start: int  # index of the first old line, from 0
    lines: tuple[tuple[str, str], ...]  # (" " | "-" | "+", text with its newline)

    @property
    def old(self) -> list[str]:
        return [text for tag, text in self.lines if tag != "+"]

    @property
    def new(self) -> list[str]:
        return [text for tag, text in self.lines if tag != "-"]


@dataclass(frozen=True)
class Patch:
    name: str
    header: str  # all text before the first diff; export keeps it
    fields: dict[str, str]
    diffs: dict[str, tuple[Hunk, ...]]  # upstream file -> its hunks

    @property
    def hooks(self) -> list[str]:
        return self.fields["Hooks"].replace(",", " ").split()

    @property
    def files(self) -> list[str]:
        return self.fields["Files"].replace(",", " ").split()


def parse(name: str, text: str) -> Patch:
    lines = split_lines(text)
    n_header = next((i for i, line in enumerate(lines) if line.startswith("--- ")), len(lines))
    header = "".join(lines[:n_header])
    patch = Patch(name, header, parse_header(name, header), parse_diffs(name, lines[n_header:]))
    unlisted = sorted(set(patch.diffs) - set(patch.files))
    if unlisted:
        raise PatchError(
            f"{name} changes {', '.join(unlisted)}: list it under Files: in the header."
        )
    return patch


def parse_header(name: str, header: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    field = ""
    for line in header.splitlines():
        match = re.match(r"([A-Z]\w+):\s*(.*)", line)
        if match:
            field = match[1]
            fields[field] = match[2]
        elif line.startswith(" ") and field:
            fields[field] += " " + line.strip()
        elif line.strip():
            raise PatchError(
                f"{name}: cannot read the header line {line!r}; see patches/README.md."
            )
    missing = [field for field in FIELDS if not fields.get(field)]
    if missing:
        raise PatchError(f"{name}: the header lacks {', '.join(missing)}; see patches/README.md.")
    return fields


def parse_diffs(name: str, lines: list[str]) -> dict[str, tuple[Hunk, ...]]:
    diffs: dict[str, tuple[Hunk, ...]] = {}
    i = 0
    while i < len(lines):
        file = lines[i].removeprefix("--- a/").rstrip("\n")
        if lines[i : i + 2] != [f"--- a/{file}\n", f"+++ b/{file}\n"]:
            raise PatchError(f"{name}: expected '--- a/FILE' and '+++ b/FILE', found {lines[i]!r}.")
        i += 2
        hunks = []
        while i < len(lines) and lines[i].startswith("@@ "):
            hunk, i = parse_hunk(name, lines, i)
            hunks.append(hunk)
        if not hunks or file in diffs:
            raise PatchError(f"{name}: {file} has no hunk or comes twice; export the queue again.")
        diffs[file] = tuple(hunks)
    return diffs


def parse_hunk(name: str, lines: list[str], i: int) -> tuple[Hunk, int]:
    head = lines[i].rstrip("\n")
    match = HUNK.match(head)
    if not match:
        raise PatchError(f"{name}: cannot read the hunk {head!r}; export the queue again.")
    n_old, n_new = int(match[2] or 1), int(match[4] or 1)
    # an empty old range names the line before it
    start = int(match[1]) - (n_old > 0)
    body: list[tuple[str, str]] = []
    i += 1
    while n_old > 0 or n_new > 0:
        if i == len(lines) or lines[i][0] not in " -+":
            raise PatchError(f"{name}: the hunk {head!r} ends early; export the queue again.")
        tag, text = lines[i][0], lines[i][1:]
        i += 1
        if lines[i : i + 1] == [NO_NEWLINE]:
            text = text.removesuffix("\n")
            i += 1
        body.append((tag, text))
        n_old -= tag != "+"
        n_new -= tag != "-"
    return Hunk(start, tuple(body)), i


def apply_hunks(name: str, file: str, hunks: tuple[Hunk, ...], text: str) -> str:
    lines = split_lines(text)
    out: list[str] = []
    done = 0
    for hunk in hunks:
        end = hunk.start + len(hunk.old)
        if hunk.start < done or lines[hunk.start : end] != hunk.old:
            raise PatchError(
                f"{name} does not apply: {file} from line {hunk.start + 1} on is not what it "
                "expects. Use the pinned llama.cpp; for another one run scripts/patches.py rebase."
            )
        out += lines[done : hunk.start] + hunk.new
        done = end
    return "".join(out + lines[done:])


def diff(file: str, old: str, new: str) -> str:
    lines = difflib.unified_diff(split_lines(old), split_lines(new), f"a/{file}", f"b/{file}")
    return "".join(line if line.endswith("\n") else line + "\n" + NO_NEWLINE for line in lines)


def split_lines(text: str) -> list[str]:
    """Only at newlines: str.splitlines also splits at form feeds and other separators."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def read(path: Path) -> str:
    # bytes, so that line ends stay what they are on every system
    return path.read_bytes().decode("utf-8")


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8"))
