"""From a user's files to cases: what comes next, and how sentences go on that a question quotes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from snapkv_local.errors import PromptError
from snapkv_local.eval.case import Case
from snapkv_local.eval.draft import Question
from snapkv_local.eval.render import case, write
from snapkv_local.eval.tokens import Tokens
from snapkv_local.prompt.spelling import Spelling

DEFAULT_LENGTH = 4096
MIN_LENGTH = 256
MOST = 16  # documents, of tuning and held out together

# in tokens: what is continued, and what a question takes beside the template's own
N_NEXT = 32
_N_QUESTION = 48

# of a sentence, in words: what the question quotes, and what is asked for
_N_QUOTED, _N_ASKED = 6, 10
# the same in characters, where a text has no spaces
_N_QUOTED_CHARACTERS, _N_ASKED_CHARACTERS = 10, 16
# where in a document the sentences stand: any first few of them are spread
_DEPTHS = (0.2, 0.8, 0.5, 0.35, 0.65, 0.05, 0.95, 0.3)
MOST_CASES = 1 + len(_DEPTHS)

# the quoted words stand at either end of a question: the window must cover all of it
_FORMS = (
    'How does the sentence go on that begins with "{}"?',
    '"{}": how does the sentence of the text that begins with these words go on?',
)

_BREAK = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")


@dataclass(frozen=True)
class Document:
    """A piece of a file, and the cases about it, whose prompts begin alike.

    Attributes:
        id: file and number.
        cases: the continuation first.
    """

    id: str
    cases: tuple[Case, ...]

    def some(self, n_cases: int) -> Document:
        """With its first cases only."""
        return replace(self, cases=self.cases[:n_cases])


@dataclass(frozen=True)
class Pieces:
    """Documents that share no text.

    Attributes:
        length: of their prompts, in tokens, at most.
        tuning: what settings are chosen by.
        held_out: what the report is of.
    """

    length: int
    tuning: tuple[Document, ...]
    held_out: tuple[Document, ...]


def cut(
    tokens: Tokens,
    texts: Sequence[tuple[str, str]],
    *,
    can_chat: bool,
    most: int,
    length: int | None = None,
) -> Pieces:
    """Cut files into documents, by turns for tuning and held out.

    Args:
        texts: name and text of each file.
        can_chat: the model has a chat template; without one there are no questions.
        most: tokens of a prompt that the model can take.
        length: of the prompts, in tokens; None for 4096, or less if the files have less.

    Raises:
        PromptError: too little text for two cases of tuning and two held out.
    """
    # with questions a document has two cases or more
    needed = 2 if can_chat else 4
    ids = [(name, tokens.text(text, begins=False)) for name, text in texts]
    wanted = min(DEFAULT_LENGTH if length is None else length, most)
    if length is not None and length > most:
        raise PromptError(
            f"length {length}",
            f"is longer than the model's context allows: {most} tokens",
            "give a shorter --length",
        )
    if wanted < MIN_LENGTH:
        raise PromptError(
            f"length {wanted}", "is too short to compress", f"give {MIN_LENGTH} or more"
        )
    least = wanted if length is not None else MIN_LENGTH
    places = _places(ids, wanted, least)
    if len(places) < needed and length is None:
        longest = max(len(file) for _, file in ids)
        wanted = min(wanted, longest // needed - N_NEXT)
        places = _places(ids, wanted, MIN_LENGTH) if wanted >= MIN_LENGTH else []
    if len(places) < needed:
        n_tokens = sum(len(file) for _, file in ids)
        raise PromptError(
            f"files of {n_tokens:,} tokens",
            f"are too few for {needed} documents of {max(wanted, MIN_LENGTH):,} tokens, half of "
            "them held out",
            "give more text" if length is None else "give more text, or a shorter --length",
        )
    if len(places) > MOST:
        chosen = np.linspace(0, len(places) - 1, MOST).round().astype(int)
        places = [places[i] for i in chosen]
    found = [_document(tokens, name, file, wanted, can_chat) for name, file in places]
    pieces = Pieces(wanted, tuple(found[0::2]), tuple(found[1::2]))
    return _paired(pieces)


def _paired(pieces: Pieces) -> Pieces:
    """As many held out as of tuning.

    Raises:
        PromptError: fewer than two cases in one of the two.
    """
    n = min(len(pieces.tuning), len(pieces.held_out))
    halves = pieces.tuning[:n], pieces.held_out[:n]
    if any(sum(len(document.cases) for document in half) < 2 for half in halves):
        raise PromptError(
            "the files",
            "give fewer than two cases for tuning and two held out: few of their sentences are "
            "long enough to be asked for",
            "give more text",
        )
    return Pieces(pieces.length, *halves)


def _places(
    ids: Sequence[tuple[str, list[int]]], length: int, least: int
) -> list[tuple[str, list[int]]]:
    """Pieces of the files, spread evenly; of a file that is shorter all, down to a least length."""
    found = []
    step = length + N_NEXT
    for name, file in ids:
        n = len(file) // step
        if n == 0 and len(file) >= least + N_NEXT:
            found.append((f"{name}/0", file))
        bounds = np.linspace(0, len(file), n + 1).astype(int).tolist()
        pairs = pairwise(bounds)
        found += [(f"{name}/{i}", file[a : min(b, a + step)]) for i, (a, b) in enumerate(pairs)]
    return found


def _document(tokens: Tokens, name: str, piece: list[int], length: int, can_chat: bool) -> Document:
    """All cases of a piece, whose prompts have at most length tokens.

    Raises:
        PromptError: the template and the questions leave no room for a document.
    """
    text = _text(tokens, piece)
    n_question = _N_QUESTION if can_chat else 0
    while True:
        found = _cases(tokens, name, text, length, n_question)
        excess = max(len(case.prompt) for case in found) - length
        if excess <= 0:
            return Document(name, tuple(found))
        n_question += excess


def _cases(tokens: Tokens, name: str, text: str, length: int, n_question: int) -> list[Case]:
    """The continuation, and questions if they are given room."""
    ids = tokens.chat(text)
    spelling = Spelling.of(tokens.spell(ids))
    at = spelling.find(text)
    first = spelling.first(at)
    last = int(np.searchsorted(spelling.begins, at + len(text.encode()), side="left"))
    template = first + len(ids) - last
    end = min(first + length - template - n_question, last - N_NEXT)
    if end - first < MIN_LENGTH // 2:
        raise PromptError(
            f"document {name}",
            f"has only {max(0, end - first)} tokens beside the template and the question",
            "give a longer --length, or longer files",
        )
    found = [
        Case(
            id=f"{name}/next",
            task="continuation",
            document=name,
            length=length,
            # the last token is fed to the compressed cache, so that no logits are of full attention
            prompt=tuple(ids[: end - 1]),
            after=(ids[end - 1],),
            gold=tuple(ids[end : end + N_NEXT]),
            system=(0, first),
            sentences=tuple(sorted({0, *spelling.sentences(0, int(spelling.begins[end - 1]))})),
        )
    ]
    if n_question:
        # from the text's first byte: the token that holds it may begin before it
        data = spelling.data[at : spelling.begins[end]]
        document = data.decode("utf-8", errors="ignore").rstrip()
        for i, question in enumerate(questions(document)):
            written = write(tokens, document, question.words, "question last")
            found.append(case(tokens, written, question, f"{name}/{i}", "question", name, length))
    return found


def questions(document: str) -> list[Question]:
    """How sentences go on whose first words are quoted, all over a document.

    That can be asked of any text, the answer is in it, and nothing else in the prompt has it.
    """
    sentences: list[tuple[str, str, float]] = []
    at = 0
    for sentence in _BREAK.split(document):
        at = document.index(sentence, at)
        parts = _halves(sentence.strip())
        # words that stand in it twice ask for two things
        if parts and '"' not in parts[0] and document.count(parts[0]) == 1:
            sentences.append((*parts, at / len(document)))
    found = []
    for i, depth in enumerate(_DEPTHS):
        if sentences:
            best = min(sentences, key=lambda s: abs(s[2] - depth))
            sentences.remove(best)
            begin, rest, where = best
            words = _FORMS[i % len(_FORMS)].format(begin)
            found.append(Question(words, begin, rest, round(where, 4)))
    return found


def _halves(sentence: str) -> tuple[str, str] | None:
    """What is quoted of a sentence and what is asked for; None if it is too short."""
    words = sentence.split(" ")
    if len(words) > _N_QUOTED + 2:
        asked = words[_N_QUOTED : _N_QUOTED + _N_ASKED]
        return " ".join(words[:_N_QUOTED]), " " + " ".join(asked)
    n = _N_QUOTED_CHARACTERS + _N_ASKED_CHARACTERS
    if len(words) == 1 and len(sentence) >= n:
        return sentence[:_N_QUOTED_CHARACTERS], sentence[_N_QUOTED_CHARACTERS:n]
    return None


def _text(tokens: Tokens, ids: list[int]) -> str:
    """What tokens spell, without the halves of characters at either end."""
    return b"".join(tokens.spell(ids)).decode("utf-8", errors="ignore").strip()
