"""Text that any machine has: sentences that are made here, and the manual of Python."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache

from snapkv_local.errors import ConfigError
from snapkv_local.eval.words import Split, own

# a sentence takes one phrase of every list; each split has every second phrase
_WHO = (
    "The gardener", "A retired teacher", "The eldest son", "The innkeeper", "A tired traveller",
    "The night porter", "My neighbour", "The town clerk", "A young carpenter", "The ferryman",
    "The widow upstairs", "A visiting judge", "The baker's daughter", "One of the pilots",
    "The new librarian", "A shepherd", "The second cook", "Somebody's uncle", "The piano tuner",
    "A former mayor", "The girl with the lantern", "The man at the counter", "An old soldier",
    "The keeper of the bridge", "A doctor from the coast", "The choir master", "The last tenant",
    "A boy of twelve", "The owner of the mill", "A clockmaker", "The postman", "A quiet stranger",
)  # fmt: skip
_DID = (
    "waited for", "wrote a long letter about", "complained of", "walked past", "dreamed of", "sold",
    "refused to talk about", "carefully measured", "forgot", "laughed at", "made a drawing of",
    "asked twice about", "paid too much for", "hid", "took an interest in", "mended",
    "tried to describe", "was proud of", "stumbled over", "had grown used to", "pointed at",
    "kept a list of", "wanted to buy", "told a story about",
)  # fmt: skip
_WHAT = (
    "the orchard wall", "a crate of lemons", "the broken umbrella", "the narrow street",
    "a pair of gloves", "the house on the corner", "two empty chairs", "the wooden staircase",
    "a map without names", "the smell of tar", "an unpaid debt", "the price of salt",
    "the bell in the tower", "a coat with one button", "the frozen pond", "a basket of plums",
    "the train that was late", "a cracked mirror", "the flood of that year", "three loaves of bread",
    "the chapel window", "a letter without a stamp", "the wind from the hills", "a sack of flour",
    "the road to the quarry", "a quarrel among brothers", "the ferry timetable", "a cup of cold tea",
    "the lights across the bay", "an unfinished song", "the goat on the roof", "a box of old photographs",
)  # fmt: skip
_WHEN = (
    "on a Monday in autumn", "before breakfast", "when the lamps were lit", "in spite of the weather",
    "without saying why", "until the shop closed", "for most of an hour", "as if nothing had happened",
    "while the others slept", "on the way to the harbour", "after the second glass", "with some surprise",
    "long before the war", "in the rain", "during the sermon", "because of a promise",
    "at the end of the season", "under the chestnut trees", "with a stone in one shoe",
    "between two appointments", "against all advice", "in a low voice", "as soon as the fog lifted",
    "for the sake of peace",
)  # fmt: skip


def generated(rng: random.Random, split: Split, n_words: int) -> list[str]:
    """Sentences of at least n_words words, each with what separates it from the next; none twice.

    Raises:
        ConfigError: there are not so many different ones.
    """
    lists = [own(phrases, split) for phrases in (_WHO, _DID, _WHAT, _WHEN)]
    n_different = 2
    for phrases in lists:
        n_different *= len(phrases)
    sentences: dict[str, None] = {}
    found = 0
    while found < n_words:
        if len(sentences) > n_different // 2:
            raise ConfigError(
                f"{n_words:,} words",
                "are more than sentences are made of",
                "give shorter --lengths",
            )
        who, did, what, when = (rng.choice(phrases) for phrases in lists)
        if rng.random() < 0.5:
            sentence = f"{who} {did} {what} {when}."
        else:
            sentence = f"{when[0].upper()}{when[1:]}, {who[0].lower()}{who[1:]} {did} {what}."
        if sentence not in sentences:
            sentences[sentence] = None
            found += sentence.count(" ") + 1
    return [s + ("\n\n" if rng.random() < 0.18 else " ") for s in sentences]


def manual(rng: random.Random, split: Split) -> list[str]:
    """All sentences of the split's half of Python's manual, from a random paragraph on."""
    paragraphs = _manual()[split]
    at = rng.randrange(len(paragraphs))
    return [s for p in (*paragraphs[at:], *paragraphs[:at]) for s in p]


def prose(rng: random.Random, split: Split, n_words: int, document: int) -> list[str]:
    """Sentences of at least n_words words, by turns from the manual and generated.

    The manual is left out where it is too short.
    """
    if document % 2 == 1:
        sentences = manual(rng, split)
        if sum(s.count(" ") for s in sentences) >= n_words:
            return sentences
    return generated(rng, split, n_words)


def whole_manual() -> list[str]:
    """Python's manual as help() has it, topic after topic, in paragraphs.

    Raises:
        ConfigError: this Python has none.
    """
    paragraphs = (p.rstrip() for text in _topics().values() for p in text.split("\n\n"))
    return [paragraph for paragraph in paragraphs if paragraph]


@cache
def _manual() -> dict[Split, tuple[tuple[str, ...], ...]]:
    """Paragraphs of prose, each a tuple of its sentences, by split: every second topic.

    A sentence that stands in several places is kept in the first one only.
    """
    topics = _topics()
    found: dict[Split, list[tuple[str, ...]]] = {"tune": [], "test": []}
    seen: set[str] = set()
    for i, text in enumerate(topics.values()):
        for paragraph in _paragraphs(text):
            pieces = re.split(r"(?<=[.!?]) ", paragraph)
            # the short ones are what ends with "e.g." and the like
            new = [piece for piece in pieces if len(piece) < 30 or piece not in seen]
            seen.update(new)
            if new:
                separated = (*(f"{s} " for s in new[:-1]), f"{new[-1]}\n\n")
                found["tune" if i % 2 == 0 else "test"].append(separated)
    return {split: tuple(paragraphs) for split, paragraphs in found.items()}


def _topics() -> dict[str, str]:
    """The texts of Python's manual, by name."""
    try:
        from pydoc_data.topics import topics
    except ImportError as e:
        raise ConfigError(
            "the manual of Python", "is not part of this Python (pydoc_data)", "install its library"
        ) from e
    return dict(sorted(topics.items()))


def _paragraphs(text: str) -> Iterator[str]:
    for block in text.split("\n\n"):
        flat = " ".join(block.split())
        if len(flat) > 80 and re.fullmatch(r"[A-Z][^|]*\.", flat) and ">>>" not in flat:
            yield flat
