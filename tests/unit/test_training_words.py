"""What the needle model is measured with, it was not trained with: names, places, colours, sentences."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from snapkv_local.eval import words as measured

TRAINING = Path(__file__).parents[2] / "training"


def load(name):
    """A script that is no module of the package."""
    return SimpleNamespace(**runpy.run_path(str(TRAINING / f"{name}.py")))


words, frames, held_out = load("words"), load("frames"), load("held_out")
TRAINED = {
    "names": words.FIRST_NAMES,
    "cities": words.CITIES,
    "colours": words.COLOURS,
}


@pytest.mark.parametrize("kind", TRAINED)
@pytest.mark.parametrize("by", [measured, held_out], ids=["eval", "held_out"])
def test_no_word_of_a_measurement_is_trained(kind, by):
    lists = {"names": by.NAMES, "cities": by.CITIES, "colours": by.COLOURS}
    for held in lists.values():
        assert not set(TRAINED[kind]) & set(held)


def trained_sentences():
    """All of frames.py, with one kind of slot."""
    found = set()

    def add(value):
        if isinstance(value, str):
            found.add(bare(value))
        elif isinstance(value, tuple):
            for part in value:
                add(part)

    for name, value in vars(frames).items():
        if name.isupper():
            add(value)
    return found


def bare(sentence):
    """Without the names of its slots."""
    for slot in ("{who}", "{s}", "{x}", "{a}", "{n}", "{m}", "{v}", "{r}"):
        sentence = sentence.replace(slot, "{}")
    return sentence


def test_no_sentence_of_eval_is_trained():
    patterns = [*measured.CITY, *measured.COLOUR, *measured.ROOM]
    assert not trained_sentences() & {bare(text) for pattern in patterns for text in pattern}


def test_no_sentence_of_held_out_is_trained():
    assert not trained_sentences() & {bare(text) for form in held_out.FORMS for text in form[1:]}
    assert not set(frames.PEOPLE) & set(held_out.PEOPLE)
