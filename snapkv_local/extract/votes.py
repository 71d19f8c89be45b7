"""Scores of passages, from the votes of a question's window.

SnapKV (arXiv 2404.14469, section 4.1) lets the last tokens of a prompt vote with their attention for
the tokens before them. Here they are the question, and what the chat template puts after it. What any
question attends to, such as first and last tokens and full stops, is taken away: the votes of a neutral
question. measure/extract.py compares it with BM25.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from snapkv_local.config import SnapKVConfig
from snapkv_local.errors import ConfigError, PromptError
from snapkv_local.extract.passages import Range
from snapkv_local.prompt import vocabulary
from snapkv_local.prompt.build import build, characters_before

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

NEUTRAL = "What is this text about?"

# A query and the end of the chat template, in tokens: they are the window, and the cache has cells for
# the window and one more row.
_MAX_QUERY = 511

# what a Llama for an Extractor is made with
CONFIG = SnapKVConfig.paper(budget=_MAX_QUERY + 1, decode_cells=1)

# Of a part's tokens, the share that it has in common with the one before: a passage at the border is
# whole in one of them if it is shorter than that.
_OVERLAP = 0.125

# tokens; less would be all overlap
_MIN_PART = 64

# a part's text may take a few tokens more by itself than within the whole
_SLACK = 8


@dataclass(frozen=True)
class Passage:
    """A passage and how much a question points at it.

    Attributes:
        document: number of the text that it is from, from 0.
        start, end: in that text, in characters: text[start:end] is the passage.
        score: votes of the query for its tokens, less those of a neutral question, mean over the
            tokens. 1 vote is what the average token of the text gets. Higher is better, 0 is what
            any question would give.
        text: what it says.
    """

    document: int
    start: int
    end: int
    score: float
    text: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Votes:
    """Of one part of a document, [n]: begin and end of each token, in characters of the document,
    and its votes, 1 on average."""

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    votes: npt.NDArray[np.float64]


class Extractor:
    """Ranks the passages of documents by how much a query points at them.

    Each document is read on its own. One that is longer than the context is read in parts of equal
    length that overlap; a passage is scored in the part that has most of its tokens.

    Args:
        llm: made with snapkv=CONFIG and keep_scores=True. Its window and budget are changed.
        documents: texts.
        passages: of each document, as cut() gives them.
        raw: without the model's chat template.

    Raises:
        ConfigError: the Llama keeps no scores.
    """

    def __init__(
        self,
        llm: Llama,
        documents: Sequence[str],
        passages: Sequence[Sequence[Range]],
        raw: bool = False,
    ) -> None:
        if not llm.keep_scores:
            raise ConfigError("this Llama", "keeps no scores", "make it with keep_scores=True")
        self.llm = llm
        self.documents = documents
        self.passages = passages
        self.raw = raw
        # the neutral question's votes are the same for each query; by document, begin and end
        self._neutral: dict[tuple[int, int, int], _Votes] = {}

    def rank(self, query: str) -> list[Passage]:
        """All passages, the best match first.

        Args:
            query: what to look for.

        Raises:
            PromptError: the query is empty or leaves no room in the context, or the tokenizer
                changes the text.
            NativeError and others: as Llama.prefill().
        """
        query = query.strip()
        if not query:
            raise PromptError("the query", "is empty", "say what to look for")
        found = []
        for number, (text, ranges) in enumerate(zip(self.documents, self.passages, strict=True)):
            best = [(0, 0.0)] * len(ranges)  # tokens, score
            for begin, end in self.parts(text, query) if ranges else []:
                asked = self._read(text, begin, end, query)
                neutral = self._neutral_votes(number, begin, end)
                for i, passage in enumerate(ranges):
                    scored = _score(asked, neutral, passage)
                    if scored[0] > best[i][0]:
                        best[i] = scored
            found += [
                Passage(number, start, end, score, text[start:end])
                for (start, end), (_, score) in zip(ranges, best, strict=True)
            ]
        return sorted(found, key=lambda passage: -passage.score)

    def parts(self, text: str, query: str) -> list[Range]:
        """What of a text is read at once, in characters: all of it if the context holds it.

        Raises:
            PromptError: the query is too long, or takes the context alone.
        """
        alone = [build(self.llm, ".", question, self.raw) for question in (query, NEUTRAL)]
        n_ctx = self.llm.n_ctx()
        n_free = n_ctx - max(len(prompt.tokens) for prompt in alone) - _SLACK
        n_query = alone[0].n_question
        if n_query > _MAX_QUERY:
            raise PromptError(
                f"query of {n_query} tokens, the chat template's end included",
                f"is longer than {_MAX_QUERY}",
                "shorten it",
            )
        if n_free < _MIN_PART:
            raise PromptError(
                f"context of {n_ctx} tokens",
                "has no room for a document beside the query and the chat template",
                "shorten the query, or raise {n_ctx}",
            )
        tokens = self.llm.tokenize(text.encode(), add_bos=False, special=False)
        if len(tokens) <= n_free:
            return [(0, len(text))]
        spelt = np.cumsum([0, *(len(piece) for piece in vocabulary.pieces(self.llm, tokens))])
        before = characters_before(text.encode())
        at = before[np.minimum(spelt, len(before) - 1)]  # begin of each token, in characters
        overlap = int(n_free * _OVERLAP)
        n_parts = math.ceil((len(tokens) - overlap) / (n_free - overlap))
        length = math.ceil((len(tokens) - overlap) / n_parts) + overlap
        firsts = [i * (length - overlap) for i in range(n_parts)]
        found = [(int(at[i]), int(at[min(i + length, len(tokens))])) for i in firsts]
        return [part for part in found if text[slice(*part)].strip()]

    def _neutral_votes(self, document: int, begin: int, end: int) -> _Votes:
        key = (document, begin, end)
        if key not in self._neutral:
            self._neutral[key] = self._read(self.documents[document], begin, end, NEUTRAL)
        return self._neutral[key]

    def _read(self, text: str, begin: int, end: int, question: str) -> _Votes:
        """The votes of a question for text[begin:end]."""
        part = text[begin:end]
        begin += len(part) - len(part.lstrip())  # which a chat template may take off
        prompt = build(self.llm, part.strip(), question, self.raw)
        window = prompt.n_question
        config = SnapKVConfig.paper(
            budget=window + 1, window_size=window, decode_cells=CONFIG.decode_cells
        )
        self.llm.set_snapkv(config)
        self.llm.prefill(prompt.tokens)
        # [layers, KV heads, positions]
        votes = self.llm.prefill_scores().mean(axis=(0, 1), dtype=np.float64)
        starts, ends = prompt.starts[: len(votes)], prompt.ends()[: len(votes)]
        inside = (ends > prompt.document[0]) & (starts < prompt.document[1])
        shift = begin - prompt.document[0]
        for_text = votes[inside]
        return _Votes(starts[inside] + shift, ends[inside] + shift, for_text / for_text.mean())


def _score(asked: _Votes, neutral: _Votes, passage: Range) -> tuple[int, float]:
    """How many tokens of a passage a part has, and its score there."""
    inside = (asked.ends > passage[0]) & (asked.starts < passage[1])
    n_tokens = int(inside.sum())
    if n_tokens == 0:
        return 0, 0.0
    # the same tokens: only what follows them differs
    return n_tokens, float((asked.votes[inside] - neutral.votes[inside]).mean())
