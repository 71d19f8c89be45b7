"""Documents and questions that training never saw: other sentences, words, names, and texts as haystacks.

    held_out.py TEXTS OUT.jsonl --lengths 4000:12,16000:8

Each line of OUT is a document with its questions. A question's answer is scored after `opening`, or
looked for in what a model says.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

NAMES = (
    "Philippa Roderick Ottilie Barnaby Cordula Leander Mirabel Thaddeus Isolde Ambrose Ludmila Cosmo "
    "Perpetua Evander Sunniva Tancred Griselda Hubert Jolanda Lambert Melchior Norbert Orlanda Prosper "
    "Rainer Sidonia Tibor Urbana Volker Wenzel Yolanda Zacharias"
).split()
CITIES = (
    "Trondheim Bratsk Cadiz Ravenna Aleppo Mombasa Kingston Halifax Nagoya Darmstadt Limoges Tarragona "
    "Brindisi Lund Poznan Ostend "
    "Plovdiv Tirana Skopje Windhoek Gaborone Kampala"
).split()
COLOURS = "tan fawn russet puce cerise ebony sepia cobalt fuchsia taupe pewter aquamarine".split()

# statement, question for {x}, opening of its answer, question for {s}
FORMS = (
    ("city", "{s} spent every summer with an aunt in {x}.", "In which city did {s} pass the summers?",
     "{s} spent every summer with an aunt in", "Who passed the summers in {x}?"),
    ("city", "The bank that {s} robbed was in {x}.", "Where did {s} commit the robbery?",
     "The bank that {s} robbed was in", "Who committed a robbery in {x}?"),
    ("colour", "The hat that {s} wore to the wedding was {x}.", "Which colour had the hat of {s}?",
     "The hat that {s} wore to the wedding was", "Whose hat was {x}?"),
    ("number", "{s} left {x} dollars to the hospital.", "How many dollars did the hospital get from {s}?",
     "{s} left", "Who gave the hospital {x} dollars?"),
    ("room", "Patients of {s} are seen in room {x}.", "In which room does {s} see patients?",
     "Patients of {s} are seen in room", "Who sees patients in room {x}?"),
    ("number", "The combination of the bicycle lock that {s} owns is {x}.",
     "With which digits does one open the bicycle lock of {s}?",
     "The combination of the bicycle lock that {s} owns is", "Whose bicycle lock opens with {x}?"),
)  # fmt: skip
PEOPLE = ("uncle", "dentist", "pen friend", "chess partner", "godmother", "bodyguard")


@dataclass
class Question:
    """One question about a document.

    Attributes:
        depth: where in the document what it asks for stands, 0 to 1.
    """

    task: str
    words: str
    opening: str
    answer: str
    depth: float


class Writer:
    """Writes documents.

    Args:
        texts: paragraphs that haystacks are made of.
    """

    def __init__(self, texts: list[str], seed: str) -> None:
        self.rng = random.Random(seed)
        self.texts = texts
        self.names = self.rng.sample(NAMES, len(NAMES))
        self.pools = {"city": self.rng.sample(CITIES, len(CITIES)),
                      "colour": self.rng.sample(COLOURS, len(COLOURS))}  # fmt: skip
        self.planted: list[tuple[float, str]] = []
        self.questions: list[Question] = []
        self.used: set[str] = set()

    def value(self, kind: str) -> str:
        """Another one at each call."""
        rng = self.rng
        if kind in self.pools:
            return self.pools[kind].pop()
        while (
            x := str(rng.randrange(100, 1000) if kind == "room" else rng.randrange(10**4, 10**6))
        ) in self.used:
            pass
        self.used.add(x)
        return x

    def say(self, text: str) -> float:
        """Plants a sentence anywhere."""
        depth = self.rng.random()
        self.planted.append((depth, text))
        return depth

    def ask(self, task: str, words: str, opening: str, answer: str, depth: float) -> None:
        """Notes a question."""
        self.questions.append(Question(task, words, opening, answer, round(depth, 3)))

    def facts(self) -> None:
        """Four of one form asked forwards and backwards, of two forms."""
        for kind, said, asked, opening, backward in self.rng.sample(FORMS, 2):
            for i in range(4):
                s, x = self.names.pop(), self.value(kind)
                depth = self.say(said.format(s=s, x=x))
                if i == 0:
                    self.ask("fact", asked.format(s=s), opening.format(s=s), x, depth)
                if i == 1:
                    self.ask("backward", backward.format(x=x), "It is", s, depth)

    def hops(self) -> None:
        """Two hops, with the first step given, and without it."""
        kind, said, asked, opening, _ = self.rng.choice(FORMS)
        for task in ("hops", "hops, short"):
            a = self.rng.choice(PEOPLE)
            s, between, x = self.names.pop(), self.names.pop(), self.value(kind)
            d1 = self.say(f"The {a} of {s} is {between}.")
            self.say(said.format(s=between, x=x))
            words = asked.format(s=f"the {a} of {s}")
            if task == "hops":
                begins = f"The {a} of {s} is {between}. " + opening.format(s=between)
                self.ask(task, words, begins, x, d1)
            else:
                self.ask(task, words + " Only the value, nothing else.", "", x, d1)

    def variables(self) -> None:
        """A chain of three, in sentences of eval's kind, and one that is asked for its number."""
        rng = self.rng
        for task in ("variables", "variable"):
            letters = "BCDFGHJKLMNPQRSTVWXZ"
            chain = [
                "".join(rng.choice(letters) + rng.choice("AEIOU") for _ in range(3))
                for _ in range(3)
            ]
            number = self.value("number")
            depths = sorted(rng.random() for _ in chain)
            for depth, name, value in zip(depths, chain, [number, *chain[:-1]], strict=True):
                self.planted.append(
                    (depth, f"VAR {name} = {value if value == number else f'VAR {value}'}.")
                )
            if task == "variables":
                self.ask(task, f"Find all variables that are assigned the value {number}, directly or "
                         "through another variable.", f"The variables with the value {number} are",
                         ", ".join(chain), depths[0])  # fmt: skip
            else:
                self.ask(task, f"Say what VAR {chain[1]} is worth.",
                         f"{chain[1]} is {chain[0]}, {chain[0]} is", number, depths[1])  # fmt: skip

    def several(self) -> None:
        """Three values of one thing, two questions at once, and how many have something."""
        rng = self.rng
        s, values = self.names.pop(), [self.value("number") for _ in range(3)]
        depths = sorted(rng.random() for _ in values)
        for depth, x in zip(depths, values, strict=True):
            self.planted.append((depth, f"A ticket number of {s} is {x}."))
        self.ask("values", f"State all ticket numbers of {s}.",
                 f"For the ticket number of {s} the text gives", ", ".join(values), depths[0])  # fmt: skip
        s, t, x, y = self.names.pop(), self.names.pop(), self.value("room"), self.value("number")
        depth = self.say(f"The cabin of {s} is {x}.")
        self.say(f"The tax file of {t} is {y}.")
        self.ask("questions", f"What is the cabin of {s}, and what is the tax file of {t}?",
                 f"The cabin of {s} is {x}. The tax file of {t} is", y, depth)  # fmt: skip
        n, x = rng.randint(2, 5), self.value("city")
        people = [self.names.pop() for _ in range(n)]
        depth = min(self.say(f"The destination of {s} is {x}.") for s in people)
        self.ask(
            "count",
            f"How many people have the destination {x}?",
            "The number of them is",
            str(n),
            depth,
        )

    def table(self) -> None:
        """Rows of a table, and lines of keys."""
        rng = self.rng
        rows = [(name, str(rng.randrange(20, 60)), self.value("number"), str(rng.randrange(2, 9)))
                for name in (f"{rng.choice(NAMES)}{n}" for n in rng.sample(range(100, 999), 8))]  # fmt: skip
        head = ("tester", "age", "score", "rank")
        lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
        depth = self.say("\n\n" + "\n".join(lines) + "\n\n")
        row = rng.choice(rows)
        self.ask(
            "table",
            f"What score did {row[0]} have, by the table?",
            f"The score of {row[0]} is",
            row[2],
            depth,
        )
        other = rng.choice(rows)
        self.ask(
            "table",
            f"What is the age of {other[0]} in the table?",
            f"The age of {other[0]} is",
            other[1],
            depth,
        )
        for task, n_digits in (("keys", 8), ("hex keys", 32)):
            keys = [f"{rng.getrandbits(128):032x}"[:n_digits] for _ in range(6)]
            values = [self.value("number") for _ in keys]
            pairs = "\n".join(f"{key}: {value}" for key, value in zip(keys, values, strict=True))
            depth = self.say(f"\n\n{pairs}\n\n")
            self.ask(
                task,
                f"Which number belongs to {keys[2]}?",
                f"The value of {keys[2]} is",
                values[2],
                depth,
            )

    def passage(self, hay: list[str]) -> None:
        """A sentence of the haystack, to be completed."""
        for _ in range(200):
            i = self.rng.randrange(len(hay))
            words = hay[i].split(" ")
            if 14 <= len(words) <= 26 and sum(h.startswith(" ".join(words[:8])) for h in hay) == 1:
                begin, rest = " ".join(words[:8]), " ".join(words[8:])
                self.ask(
                    "passage", f"Give the rest of this sentence: {begin}", "", rest, i / len(hay)
                )
                return

    def write(self, n_characters: int) -> dict:
        """The document and its questions."""
        self.facts()
        self.hops()
        self.variables()
        self.several()
        self.table()
        hay: list[str] = []
        size = sum(len(text) for _, text in self.planted)
        at = self.rng.randrange(len(self.texts))
        while size < n_characters:
            sentences = self.texts[at % len(self.texts)].replace(". ", ".\0").split("\0")
            hay += [*sentences[:-1], sentences[-1] + "\n\n"]
            size += sum(len(s) + 1 for s in sentences)
            at += 1
        self.passage(hay)
        pieces: list[tuple[float, str]] = [
            (i / len(hay), s) for i, s in enumerate(hay)
        ] + self.planted
        pieces.sort(key=lambda p: p[0])
        text = ""
        for _, piece in pieces:
            if piece.startswith("\n"):
                text = text.rstrip() + piece
            else:
                text += piece if not text or text.endswith("\n") else f" {piece}"
        return {"text": text.strip(), "questions": [asdict(q) for q in self.questions]}


def main() -> None:
    """Writes documents of some lengths."""
    arg = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arg.add_argument("texts", type=Path, help="held-out.txt of corpus.py")
    arg.add_argument("out", type=Path)
    arg.add_argument(
        "--lengths", default="4000:12,16000:8", help="tokens, about, and how many documents"
    )
    arg.add_argument("--characters", type=float, default=3.6, help="of a token")
    o = arg.parse_args()
    texts = o.texts.read_text("utf-8").split("\n")
    with o.out.open("w", encoding="utf-8") as file:
        for length, n in (map(int, part.split(":")) for part in o.lengths.split(",")):
            for i in range(n):
                made = Writer(texts, f"held out {length} {i}").write(int(length * o.characters))
                file.write(json.dumps({"length": length, **made}) + "\n")


if __name__ == "__main__":
    main()
