"""Texts with planted passages, for measure/extract.py.

There are two sets, tuning() and report(): the formula of snapkv_local/extract/votes.py was chosen by the
first, and the record is of the second. They have no passage, no module and no generated sentence in
common, and nothing is from the demo's document. Haystacks are docstrings and source code of Python's
standard library, or made from word lists with a seed, so any machine has them.

The passages, and the questions for each, are in measure/passages/: in the passage's own words, in
few of them (report only), and in other words.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

PASSAGES = Path(__file__).parent / "passages"


@dataclass(frozen=True)
class Passage:
    """One planted passage.

    Attributes:
        text: a sentence, or a Python function.
        questions: by their kind, such as "other words".
    """

    text: str
    questions: dict[str, str]


@dataclass(frozen=True)
class Haystack:
    """A text with passages planted in it.

    Attributes:
        name: where the text is from.
        unit: what extract is to cut it into, "sentence" or "function".
        text: with the passages.
        passages: in the order in which they stand in the text.
    """

    name: str
    unit: str
    text: str
    passages: tuple[Passage, ...]


# each sentence is one word of every list
STORY = (
    ("The gardener", "A clerk", "The eldest son", "The innkeeper", "A traveller", "The pilot"),
    ("waited for", "wrote a letter about", "complained of", "walked past", "dreamed of", "sold"),
    ("the orchard wall", "a crate of oranges", "the broken umbrella", "the quiet street",
     "a pair of red gloves", "the house on the corner", "two empty chairs"),
    ("on a Monday in autumn.", "before breakfast.", "when the lamps were lit.",
     "in spite of the weather.", "without saying why.", "until the shop closed."),
)  # fmt: skip
MINUTES = (
    ("The board", "Our treasurer", "The second speaker", "Ms Aldous", "A member from the floor",
     "The working group", "The chair"),
    ("asked for", "deferred", "welcomed", "objected to", "summarised", "wished to see"),
    ("the audit of the pension fund", "a revised budget", "the plan for the car park",
     "new rules on expenses", "the report on energy use", "the contract with the caterer"),
    ("at once.", "with two abstentions.", "until the next quarter.", "for the sake of clarity.",
     "as in the previous year.", "after a short break."),
)  # fmt: skip


def tuning() -> list[Haystack]:
    """The set that settings are chosen by."""
    sentences, functions = _passages("tuning.json")
    rng = random.Random(1)
    return [
        _plant("story 1", "sentence", _generated(STORY, 60, rng), sentences[0:11], rng),
        _plant("story 2", "sentence", _generated(STORY, 60, rng), sentences[11:22], rng),
        _plant("docstrings of argparse, shlex, sched", "sentence",
               _docstrings(("argparse", "shlex", "sched"), 20), sentences[22:33], rng),
        _plant("docstrings of logging, textwrap, difflib", "sentence",
               _docstrings(("logging", "textwrap", "difflib"), 20), sentences[33:], rng),
        _plant("colorsys.py", "function", _source("colorsys"), functions[:8], rng),
        _plant("fnmatch.py", "function", _source("fnmatch"), functions[8:], rng),
    ]  # fmt: skip


def report() -> list[Haystack]:
    """The set that the record is of. Nothing may be chosen by it."""
    sentences, functions = _passages("report.json")
    rng = random.Random(2)
    return [
        _plant("minutes", "sentence", _generated(MINUTES, 60, rng), sentences[0:10], rng),
        _plant("docstrings of zipfile, csv, calendar, contextlib", "sentence",
               _docstrings(("zipfile", "csv", "calendar", "contextlib"), 24), sentences[10:19],
               rng),
        _plant("docstrings of mailbox, threading", "sentence",
               _docstrings(("mailbox", "threading"), 24), sentences[19:], rng),
        _plant("reprlib.py", "function", _source("reprlib"), functions[:6], rng),
        _plant("genericpath.py", "function", _source("genericpath"), functions[6:], rng),
    ]  # fmt: skip


def _passages(name: str) -> tuple[list[Passage], list[Passage]]:
    found = json.loads((PASSAGES / name).read_text(encoding="utf-8"))
    sentences, functions = ([Passage(**p) for p in found[u]] for u in ("sentence", "function"))
    return sentences, functions


def _generated(lists: tuple[tuple[str, ...], ...], n: int, rng: random.Random) -> list[str]:
    """Paragraphs of five sentences, n in all, none of them twice."""
    said: dict[str, None] = {}
    while len(said) < n:
        said[" ".join(rng.choice(words) for words in lists)] = None
    sentences = list(said)
    return [" ".join(sentences[i : i + 5]) for i in range(0, n, 5)]


def _docstrings(modules: tuple[str, ...], n: int) -> list[str]:
    """The first n paragraphs of prose in the docstrings of modules of the standard library."""
    found: list[str] = []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for name in modules:
        for node in ast.walk(ast.parse(inspect.getsource(importlib.import_module(name)))):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            for paragraph in (text or "").split("\n\n"):
                flat = " ".join(paragraph.split())
                prose = len(flat) > 80 and re.fullmatch(r"[A-Z].*\.", flat) and ">>>" not in flat
                if prose and flat not in found:
                    found.append(flat)
    return found[:n]


def _source(module: str) -> list[str]:
    """The top-level statements of a module of the standard library, each with what leads to it."""
    text = inspect.getsource(importlib.import_module(module))
    lines = text.splitlines(keepends=True)
    ends = [node.end_lineno or 0 for node in ast.parse(text).body]
    return ["".join(lines[a:b]) for a, b in zip([0, *ends], ends, strict=False)]


def _plant(
    name: str, unit: str, parts: list[str], passages: list[Passage], rng: random.Random
) -> Haystack:
    """Put each passage at a random place within its own share of the text, so that depths vary."""
    order = rng.sample(passages, len(passages))
    bounds = [i * len(parts) // len(order) for i in range(len(order) + 1)]
    # from the end, so that earlier places stay where they are
    for i in reversed(range(len(order))):
        at = rng.randrange(bounds[i], max(bounds[i + 1], bounds[i] + 1))
        if unit == "function":
            parts[at] += "\n\n" + order[i].text
        else:
            # among the sentences of a paragraph
            sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", parts[at])
            sentences.insert(rng.randint(0, len(sentences)), order[i].text)
            parts[at] = " ".join(sentences)
    text = ("" if unit == "function" else "\n\n").join(parts)
    return Haystack(name, unit, text, tuple(order))
