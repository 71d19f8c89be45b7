"""Questions and answers that users bring: JSON lines of their own, and files in LongBench's format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snapkv_local.errors import PromptError
from snapkv_local.eval.case import Case
from snapkv_local.eval.draft import Question
from snapkv_local.eval.render import case, write
from snapkv_local.eval.tasks.task import Wanted
from snapkv_local.eval.tokens import Tokens
from snapkv_local.reading.text import decode

Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One question of a file.

    Attributes:
        document: may be empty.
        question: its words, and how the answer begins, and the answer.
    """

    document: str
    question: Question


@dataclass(frozen=True)
class FileTask:
    """A task whose cases are read from a file. Prompts are taken as they are, whatever their length.

    Attributes:
        kind: of the file, as on the command line.
        path: of the file.
        entry: from a row; raises KeyError or TypeError for one that is not of the kind.
        needs: what a row must have, for errors.
    """

    kind: str
    path: Path
    entry: Callable[[Row], Entry]
    needs: str

    @property
    def name(self) -> str:
        """Kind and file name."""
        return f"{self.kind}:{self.path.name}"

    def settings(self) -> dict[str, Any]:
        """What the file says, by its hash."""
        return {"sha256": hashlib.sha256(self._read()).hexdigest()}

    def cases(self, tokens: Tokens, wanted: Wanted) -> Iterator[Case]:
        """Cases of the first n_documents documents, all of a document together.

        Raises:
            PromptError: the file is missing or malformed, with the line.
            TextFileError: it is not text.
        """
        documents: dict[str, list[tuple[int, Entry]]] = {}
        for line, row in self._rows():
            entry = self._entry(line, row)
            # a prompt without a document is a document of its own
            key = entry.document or entry.question.words
            documents.setdefault(key, []).append((line, entry))
        for i, entries in enumerate(documents.values()):
            if wanted.n_documents is not None and i >= wanted.n_documents:
                return
            for line, entry in entries:
                yield self._case(tokens, f"{self.name}/{i}", line, entry)

    def _case(self, tokens: Tokens, document: str, line: int, entry: Entry) -> Case:
        question = entry.question
        try:
            written = write(tokens, entry.document, question.words, "question last")
            return case(tokens, written, question, f"{document}/{line}", self.name, document, None)
        except PromptError as e:
            raise PromptError(f"{self.path}, entry {line}: {e.subject}", e.problem, e.cure) from e

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as e:
            raise PromptError(
                str(self.path), f"cannot be read ({e.strerror})", "check the path"
            ) from e

    def _rows(self) -> list[tuple[int, Any]]:
        """Each with its number: of the line, or in a JSON list."""
        text = decode(self._read(), str(self.path))
        rows: list[tuple[int, Any]] = []
        if text.lstrip().startswith("["):
            rows = list(enumerate(self._parse(text, 0), 1))
        else:
            # not splitlines(): JSON may hold other ends of lines within its strings
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    rows.append((number, self._parse(line, number)))
        if not rows:
            raise PromptError(
                str(self.path), "has no entries", f"give JSON lines with {self.needs}"
            )
        return rows

    def _parse(self, text: str, line: int) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as e:
            raise PromptError(
                f"{self.path}, line {line or e.lineno}",
                f"is not JSON ({e.msg})",
                "write one JSON object in each line",
            ) from e

    def _entry(self, line: int, row: Any) -> Entry:
        try:
            return self.entry(row)
        except (KeyError, TypeError) as e:
            raise PromptError(
                f"{self.path}, entry {line}",
                f"is not what task {self.kind} reads: {e.args[0]}",
                f"give each entry {self.needs}",
            ) from e


def jsonl(path: Path) -> FileTask:
    """Users' own questions.

    The question of a bare prompt is what follows its last empty line.
    """
    needs = '"document" and "question", or "prompt", and "answer"; "opening" may say how it begins'
    return FileTask("jsonl", path, _own_entry, needs)


def longbench(path: Path) -> FileTask:
    """Files of LongBench (arXiv 2308.14508): "context", "input", "answers".

    The first answer is scored token by token, which is not LongBench's own metric.
    """
    return FileTask("longbench", path, _longbench_entry, '"context", "input" and "answers"')


KINDS = {"jsonl": jsonl, "longbench": longbench}


def _own_entry(row: Any) -> Entry:
    _check_object(row)
    if "prompt" in row:
        document, _, words = _text(row, "prompt").strip().rpartition("\n\n")
    else:
        document, words = _text(row, "document").strip(), _text(row, "question").strip()
    opening = _text(row, "opening") if "opening" in row else ""
    return Entry(document, _question(words, opening, _text(row, "answer")))


def _longbench_entry(row: Any) -> Entry:
    _check_object(row)
    answers = row["answers"] if "answers" in row else _missing("answers")
    if not isinstance(answers, list) or not answers or not isinstance(answers[0], str):
        raise TypeError('"answers" is not a list of texts')
    words = _text(row, "input").strip() or "Summarize the text."
    return Entry(_text(row, "context").strip(), _question(words, "", answers[0]))


def _question(words: str, opening: str, answer: str) -> Question:
    if not words:
        raise TypeError("the question is empty")
    if not answer.strip():
        raise TypeError("the answer is empty")
    opening = opening.strip()
    return Question(words, opening, f" {answer.strip()}" if opening else answer.strip())


def _check_object(row: Any) -> None:
    if not isinstance(row, dict):
        raise TypeError("it is not a JSON object")


def _text(row: Row, key: str) -> str:
    value = row[key] if key in row else _missing(key)
    if not isinstance(value, str):
        raise TypeError(f'"{key}" is not a text')
    return value


def _missing(key: str) -> Any:
    raise KeyError(f'"{key}" is missing')
