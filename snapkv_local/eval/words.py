"""Word lists. Cases that settings are tuned by and cases that are held out have no word of them in common."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, TypeVar

T = TypeVar("T")

Split = Literal["tune", "test"]
SPLITS: tuple[Split, ...] = ("tune", "test")

NAMES = (
    "Agnes", "Basil", "Cecily", "Dorian", "Edith", "Florian", "Greta", "Hector", "Imogen",
    "Jasper", "Katrin", "Lionel", "Mabel", "Nestor", "Odile", "Percy", "Quentin", "Rosalind",
    "Silas", "Thelma", "Ulrich", "Verena", "Wilfred", "Xenia", "Yorick", "Zelda", "Ansel",
    "Bettina", "Casimir", "Daphne", "Emeric", "Fenella", "Gideon", "Harriet", "Ivor", "Juliana",
    "Konrad", "Leonie", "Magnus", "Nadia", "Oswald", "Petra",
)  # fmt: skip
CITIES = (
    "Lisbon", "Oslo", "Quebec", "Naples", "Dublin", "Kyoto", "Geneva", "Havana", "Prague",
    "Nairobi", "Lima", "Boston", "Riga", "Athens", "Vienna", "Madrid", "Cairo", "Denver",
    "Warsaw", "Seville", "Tunis", "Zurich", "Delhi", "Porto", "Turin", "Bergen", "Sydney",
    "Malaga", "Leipzig", "Quito", "Dresden", "Hobart", "Ghent", "Salzburg", "Tampere",
    "Bologna",
)  # fmt: skip
COLOURS = (
    "red", "blue", "green", "yellow", "white", "black", "purple", "orange", "brown", "grey",
    "silver", "gold", "pink", "violet", "beige", "turquoise",
)  # fmt: skip

# each begins with a consonant and has a plural in -s
THINGS = (
    "locker", "ticket", "parcel", "bicycle", "badge", "seat", "barrel", "crate", "cabin", "desk",
    "lantern", "kayak", "trunk", "flute", "coin", "sledge",
)  # fmt: skip

# statement, question in other words, opening of the answer; {who} is a name, {x} the answer
Pattern = tuple[str, str, str]
CITY: tuple[Pattern, ...] = (
    ("{who} learned to swim in a lake just outside {x}.",
     "Near which city was it that {who} was taught to swim?",
     "{who} learned to swim in a lake just outside"),
    ("The violin that {who} plays was built in {x}.",
     "Where does the instrument of {who} come from?",
     "The violin that {who} plays was built in"),
    ("{who} opened a bakery in {x} after leaving the navy.",
     "In what city did {who} start to sell bread?",
     "{who} opened a bakery in"),
    ("The letters of {who} are kept in an archive in {x}.",
     "Which city holds the correspondence of {who}?",
     "The letters of {who} are kept in an archive in"),
    ("{who} spent a whole year in {x} to study its bridges.",
     "Where did {who} go to see how bridges are made?",
     "{who} spent a whole year in"),
    ("The theatre that {who} inherited stands in {x}.",
     "In which city is the playhouse that came to {who}?",
     "The theatre that {who} inherited stands in"),
)  # fmt: skip
COLOUR: tuple[Pattern, ...] = (
    ("Last spring {who} had the garden gate painted {x}.",
     "What is the colour of the gate in front of the garden of {who}?",
     "{who} had the garden gate painted"),
    ("The saddle of the bicycle that {who} lost was {x}.",
     "Of which colour was the seat on the missing bicycle of {who}?",
     "The saddle of the bicycle that {who} lost was"),
    ("All invoices of {who} are printed on paper that is {x}.",
     "On paper of which colour are the bills of {who}?",
     "All invoices of {who} are printed on paper that is"),
    ("The workshop door of {who} is {x} on the inside.",
     "Seen from within, what colour has the door to the workshop of {who}?",
     "The workshop door of {who} is"),
    ("Every parcel from {who} comes wrapped in cloth that is {x}.",
     "What colour is the fabric around the packages that {who} sends?",
     "Every parcel from {who} comes wrapped in cloth that is"),
    ("The boots that {who} wore at the parade were {x}.",
     "Which colour were the shoes of {who} on the day of the procession?",
     "The boots that {who} wore at the parade were"),
)  # fmt: skip
ROOM: tuple[Pattern, ...] = (
    ("The spare key of {who} is in room {x} of the annex.",
     "Where in the annex is the extra key that belongs to {who}?",
     "The spare key of {who} is in room"),
    ("The meeting with {who} was moved to room {x}.",
     "In which room will people now talk to {who}?",
     "The meeting with {who} was moved to room"),
    ("The old maps of {who} are locked away in room {x}.",
     "Behind which door are the ancient charts of {who}?",
     "The old maps of {who} are locked away in room"),
    ("The piano of {who} stands in room {x} of the town hall.",
     "Which room of the town hall has the instrument of {who} in it?",
     "The piano of {who} stands in room"),
    ("Parcels for {who} are handed out in room {x}.",
     "Where does one collect what was sent to {who}?",
     "Parcels for {who} are handed out in room"),
    ("The doctor asked {who} to wait in room {x}.",
     "In which room should {who} sit until the doctor comes?",
     "The doctor asked {who} to wait in room"),
)  # fmt: skip


def own(items: Sequence[T], split: Split) -> list[T]:
    """Every second item: the two splits share none."""
    return list(items[SPLITS.index(split) :: 2])


def room(rng: random.Random, split: Split) -> str:
    """A number of three digits, even for one split and odd for the other."""
    return str(100 + 2 * rng.randrange(450) + SPLITS.index(split))


def rooms(rng: random.Random, split: Split, n: int) -> list[str]:
    """n different ones of room()."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[room(rng, split)] = None
    return list(found)


def made_up(rng: random.Random, split: Split, n: int) -> list[str]:
    """n different words that no language has."""
    consonants, vowels = ("bdgklmnp", "aeo") if split == "tune" else ("rstvzfhj", "aiu")
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(3))] = None
    return list(found)
