"""From a draft to cases: the document is fitted to a length, and written in the chat template."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapkv_local.errors import PromptError
from snapkv_local.eval.case import Case, Span
from snapkv_local.eval.draft import Draft, Layout, Question
from snapkv_local.eval.tokens import Tokens
from snapkv_local.prompt.spelling import Spelling, find, starts

SEPARATOR = "\n\n"
_FIRST = "Read the text and answer this question: "


@dataclass(frozen=True)
class Written:
    """A document and a question as a prompt.

    Attributes:
        prompt, rest: tokens; rest is what of the user's turn comes after the compression.
        system, question, sentences: as in Case.
    """

    prompt: tuple[int, ...]
    rest: tuple[int, ...]
    system: Span
    question: Span | None
    sentences: tuple[int, ...]


def fit(tokens: Tokens, draft: Draft, length: int, task: str, document: str) -> list[Case]:
    """The cases of a draft, whose prompts have at most `length` tokens, and no more room for a word.

    All questions get the same document, which the longest of them decides.

    Raises:
        PromptError: not even what is planted fits, or the filler ends before the length.
    """

    def write_all(n_words: int) -> list[Written]:
        text = draft.text(n_words)
        return [write(tokens, text, question.words, draft.layout) for question in draft.questions]

    empty = [len(written.prompt) for written in write_all(0)]
    low, n_low = 0, max(empty)
    # with the same document, the longest question's prompt stays the longest
    longest = draft.questions[empty.index(n_low)].words
    if n_low > length:
        raise PromptError(
            f"length {length} of task {task}",
            f"is too short: question, template and what is planted take {n_low} tokens",
            "give longer --lengths",
        )
    high = draft.n_words + 1
    per_word = 1.3
    while high - low > 1:
        guess = low + max(1, int((length - n_low) / per_word))
        # near the end the guess is a word off, and a step to the other side closes the gap
        n_words = min(guess, high - 1)
        n = len(write(tokens, draft.text(n_words), longest, draft.layout).prompt)
        per_word = max((n - n_low) / (n_words - low), 0.5)
        if n <= length:
            low, n_low = n_words, n
        else:
            high = n_words
    if low == draft.n_words and n_low < length:
        raise PromptError(
            f"length {length} of task {task}",
            f"is longer than the text that there is, {n_low} tokens",
            "give shorter --lengths",
        )
    return [
        case(tokens, w, question, f"{document}/{i}", task, document, length)
        for i, (w, question) in enumerate(zip(write_all(low), draft.questions, strict=True))
    ]


def write(tokens: Tokens, document: str, question: str, layout: Layout) -> Written:
    """A prompt, and where its parts are.

    Raises:
        PromptError: the chat template or the tokenizer changes the text.
    """
    if layout == "question first":
        content = _FIRST + question + SEPARATOR + document
        at_question, at_document = (
            len(_FIRST.encode()),
            len(content.encode()) - len(document.encode()),
        )
    else:
        content = document + SEPARATOR + question if document else question
        at_question, at_document = len(content.encode()) - len(question.encode()), 0
    ids = tokens.chat(content)
    spelling = Spelling.of(tokens.spell(ids))
    at = spelling.find(content)
    n_question, n_document = len(question.encode()), len(document.encode())
    first = spelling.first
    span = spelling.span(at + at_question, at + at_question + n_question)
    n_prompt = len(ids)
    if layout == "question after":
        n_prompt = first(at + at_document + n_document - 1) + 1
    sentences = {0, first(at), first(at + at_question), first(at + at_document)}
    offset = at + at_document
    sentences |= spelling.sentences(offset, offset + n_document)
    return Written(
        prompt=tuple(ids[:n_prompt]),
        rest=tuple(ids[n_prompt:]),
        system=spelling.before(at),
        question=None if layout == "question after" else span,
        sentences=tuple(sorted(s for s in sentences if s < n_prompt)),
    )


def case(
    tokens: Tokens,
    written: Written,
    question: Question,
    name: str,
    task: str,
    document: str,
    length: int | None,
) -> Case:
    """A case of a written prompt.

    What is fed after the compression is what is left of the user's turn and the answer's opening.
    Where there is neither, the prompt's last token is: its logits must come from the compressed
    cache.
    """
    opening, gold = answer(tokens, question.opening, question.answer)
    prompt, after = written.prompt, (*written.rest, *opening)
    if not after:
        prompt, after = prompt[:-1], prompt[-1:]
    span = written.question
    if span is not None:
        span = (span[0], min(span[1], len(prompt)))
    return Case(
        id=name,
        task=task,
        document=document,
        length=length,
        prompt=prompt,
        after=after,
        gold=gold,
        system=written.system,
        question=span,
        sentences=tuple(s for s in written.sentences if s < len(prompt)),
        depth=question.depth,
    )


def answer(tokens: Tokens, opening: str, words: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of an answer's opening and of the rest, from the first that holds a part of the rest.

    Raises:
        PromptError: nothing to score, or the tokenizer changes the text.
    """
    ids = tokens.text(opening + words, begins=False)
    pieces = tokens.spell(ids)
    begins = starts(pieces)
    at = find(b"".join(pieces), opening + words) + len(opening.encode())
    n = int(np.searchsorted(begins[1:], at, side="right"))
    if n == len(ids):
        raise PromptError("an answer", "is empty", "give at least one word to score")
    return tuple(ids[:n]), tuple(ids[n:])
