"""Facts: one relation, one subject, one value. Asked forwards, backwards, over two hops, several at once."""

from __future__ import annotations

import random
from dataclasses import dataclass

import frames
from exchanges import Exchange, Item, Used
from pieces import Ids, Spelling, Template, Word
from pools import Pools

Templates = list[Template]


@dataclass(slots=True)
class Relation:
    """What is said of several subjects.

    Attributes:
        name: tells it from others.
        kind: of its values.
        slots: what its templates need beside subject and value.
        opening: of answers; None: a statement in which the subject comes first.
    """

    name: bytes
    kind: str
    slots: dict[str, Word]
    said: Templates
    asked: Templates
    backward: Templates
    opening: Template | None


@dataclass(slots=True)
class Fact:
    """A statement with the words that fill it."""

    relation: Relation
    slots: dict[str, Word]
    template: Template

    @property
    def said(self) -> tuple[Ids, Ids]:
        """After a space, and at the begin of a line."""
        return self.template.write(self.slots, True), self.template.write(self.slots, False)


class Facts:
    """Makes items of facts."""

    def __init__(self, spelling: Spelling, pools: Pools, rng: random.Random) -> None:
        self.rng, self.pools = rng, pools

        def templates(texts: tuple[str, ...]) -> Templates:
            return [Template(spelling, text) for text in texts]

        generic = (
            templates(frames.GENERIC),
            templates(frames.GENERIC_ASKED),
            templates(frames.GENERIC_BACKWARD),
        )
        self._generic = (*generic, Template(spelling, frames.GENERIC_OPENING))
        self._frames = [
            Relation(f.said[0].encode(), f.kind, {}, templates(f.said), templates(f.asked),
                     templates(f.backward), None)
            for f in frames.FRAMES
        ]  # fmt: skip
        self._attributes = [self._named(spelling.word(a), kind) for a, kind in frames.ATTRIBUTES]
        self._people = [self._named(spelling.word(a), "name") for a in frames.PEOPLE]
        self._phrases = Template(spelling, "the {a} of {s}"), Template(spelling, "The {a} of {s}")
        self._backward_openings = [spelling.encode(text) for text in frames.BACKWARD_OPENINGS]
        self._several = templates(frames.SEVERAL)
        self._several_asked = templates(frames.SEVERAL_ASKED)
        self._several_opening = Template(spelling, frames.SEVERAL_OPENING)
        self._counted = templates(frames.COUNTED)
        self._counted_opening = spelling.encode(frames.COUNTED_OPENING)
        self._counts = [spelling.word(str(n)) for n in range(10)]
        self._together = [spelling.encode(text) for text in frames.TOGETHER]
        self._dot, self._comma = spelling.encode("."), spelling.encode(",")

    def _named(self, attribute: Word, kind: str) -> Relation:
        said, asked, backward, opening = self._generic
        slots = {"a": attribute}
        return Relation(attribute.spaced.tobytes(), kind, slots, said, asked, backward, opening)

    def relation(self) -> Relation:
        """A sentence, a usual attribute, or one of two words that never met."""
        rng = self.rng
        r = rng.random()
        if r < 0.5:
            return rng.choice(self._frames)
        return rng.choice(self._attributes + self._people) if r < 0.75 else self._unheard()

    def _unheard(self) -> Relation:
        a, b = self.rng.choice(self.pools.plain), self.rng.choice(self.pools.plain)
        kind = self.rng.choice(
            ("city", "number", "word", "name", "code", "number", "city", "phrase")
        )
        return self._named(Word(a.spaced + b.spaced, a.first + b.spaced, False), kind)

    def fact(
        self, relation: Relation, subject: Word, used: Used, value: Word | None = None
    ) -> Fact | None:
        """What a relation says of a subject; None where it was said already, or cannot be."""
        known = relation.name, subject.spaced.tobytes()
        if known in used.known:
            return None
        if value is None:
            value = self.pools.value(relation.kind)
        name = relation.name, value.spaced.tobytes()
        if name in used.reserved:
            return None
        fine = [t for t in relation.said if subject.may_begin or t.begins_with != "s"]
        if not fine:
            return None
        used.known.add(known)
        used.values[name] += 1
        return Fact(relation, {**relation.slots, "s": subject, "x": value}, self.rng.choice(fine))

    def _opening(self, fact: Fact) -> Template:
        if fact.relation.opening is not None and self.rng.random() < 0.8:
            return fact.relation.opening
        begins = fact.slots["s"].may_begin
        fine = [
            t
            for t in fact.relation.said
            if t.is_before("s", "x") and (begins or t.begins_with != "s")
        ]
        return self.rng.choice(fine) if fine else fact.template

    def _asked(self, templates: Templates, slots: dict[str, Word]) -> tuple[Ids, Ids]:
        fine = [t for t in templates if not t.begins_with or slots[t.begins_with].may_begin]
        ask = self.rng.choice(fine)
        return ask.write(slots, False), ask.write(slots, True)

    def _exchange(self, task: str, asked: tuple[Ids, Ids], opening: Ids, value: Word) -> Exchange:
        full = [(opening, False), (value.spaced, True), (self._dot, False)]
        return Exchange(task, *asked, full, value.first)

    def forward(self, fact: Fact) -> Exchange:
        """Asks for the value."""
        asked = self._asked(fact.relation.asked, fact.slots)
        opening = self._opening(fact).write(fact.slots, False, until="x")
        return self._exchange("fact", asked, opening, fact.slots["x"])

    def group(self, n: int, used: Used) -> list[Fact]:
        """Up to n facts, of which several share their relation or their subject."""
        rng = self.rng
        size = rng.choice((1, 2, 4, 4, 8))
        relations = [self.relation() for _ in range(1 + n // size)]
        is_person = rng.random() < 0.5
        n_subjects = max(2, int(n / rng.choice((1, 1, 2, 3))))
        subjects = [self.pools.subject(is_person) for _ in range(n_subjects)]
        made = (self.fact(rng.choice(relations), rng.choice(subjects), used) for _ in range(3 * n))
        found = []
        for fact in made:
            if fact is not None:
                found.append(fact)
                if len(found) == n:
                    break
        return found

    def facts(self, n: int, used: Used) -> list[Item]:
        """Each asked for its value."""
        return [Item([fact.said], self.forward(fact)) for fact in self.group(n, used)]

    def backward(self, n: int, used: Used) -> list[Item]:
        """Asked for the subject of a value that only one has."""
        items = []
        for fact in self.group(n, used):
            value = fact.relation.name, fact.slots["x"].spaced.tobytes()
            exchange = None
            if used.values[value] == 1:
                used.reserved.add(value)
                opening = self.rng.choice(self._backward_openings)
                asked = self._asked(fact.relation.backward, fact.slots)
                exchange = self._exchange("backward", asked, opening, fact.slots["s"])
            items.append(Item([fact.said], exchange))
        return items

    def hops(self, n: int, used: Used) -> list[Item]:
        """Who somebody's neighbour is, and what is true of the neighbour."""
        rng = self.rng
        first = [rng.choice(self._people) for _ in range(1 + n // 3)]
        second = [self.relation() for _ in range(1 + n // 3)]
        items = []
        for _ in range(n):
            who, between = self.pools.subject(rng.random() < 0.6), self.pools.person()
            if not used.is_new(between):
                continue
            one = self.fact(rng.choice(first), who, used, between)
            two = self.fact(rng.choice(second), between, used)
            if one is None or two is None:
                items += [Item([fact.said]) for fact in (one, two) if fact is not None]
                continue
            lower, upper = self._phrases
            phrase = Word(lower.write(one.slots, True), upper.write(one.slots, False))
            asked = self._asked(two.relation.asked, {**two.slots, "s": phrase})
            full = [
                (self._opening(one).write(one.slots, False, until="x"), False),
                (between.spaced, True),
                (self._dot, False),
                (self._opening(two).write(two.slots, True, until="x"), False),
                (two.slots["x"].spaced, True),
                (self._dot, False),
            ]
            exchange = Exchange("hops", *asked, full, two.slots["x"].first)
            items.append(Item([one.said, two.said], exchange))
        return items

    def values(self, n: int, used: Used) -> list[Item]:
        """Several values of one attribute, all of which are asked for, in the order of the text."""
        rng = self.rng
        items = []
        for _ in range(max(1, n // 3)):
            relation = rng.choice(self._attributes) if rng.random() < 0.6 else self._unheard()
            subject = self.pools.subject(True)
            known = relation.name, subject.spaced.tobytes()
            if known in used.known or relation.kind == "phrase":
                continue
            used.known.add(known)
            several = list({(w := self.pools.value(relation.kind)).spaced.tobytes(): w
                            for _ in range(rng.randint(2, 4))}.values())  # fmt: skip
            slots = {**relation.slots, "s": subject}
            said, listed, short = [], Ids("H"), Ids("H")
            for i, value in enumerate(several):
                used.values[relation.name, value.spaced.tobytes()] += 1
                used.reserved.add((relation.name, value.spaced.tobytes()))
                template = rng.choice(self._several)
                filled = {**slots, "x": value}
                said.append((template.write(filled, True), template.write(filled, False)))
                listed += (self._comma if i else Ids("H")) + value.spaced
                short += (self._comma + value.spaced) if i else value.first
            asked = self._asked(self._several_asked, slots)
            opening = self._several_opening.write(slots, False)
            full = [(opening, False), (listed, True), (self._dot, False)]
            items.append(Item(said, Exchange("values", *asked, full, short), in_order=True))
        return items

    def questions(self, n: int, used: Used) -> list[Item]:
        """Two or three questions at once."""
        facts = self.group(n, used)
        items = []
        while facts:
            several = [facts.pop() for _ in range(min(len(facts), self.rng.randint(2, 3)))]
            if len(several) < 2:
                items += [Item([fact.said]) for fact in several]
                break
            begins = self.rng.choice(self._together)
            asked, spaced, full, short = Ids("H", begins), Ids("H"), [], Ids("H")
            for i, fact in enumerate(several):
                one = self._asked(fact.relation.asked, fact.slots)
                asked += one[bool(asked)]
                spaced += one[1]
                opening = self._opening(fact).write(fact.slots, i > 0, until="x")
                full += [(opening, False), (fact.slots["x"].spaced, True), (self._dot, False)]
                short += (self._comma + fact.slots["x"].spaced) if i else fact.slots["x"].first
            items.append(
                Item([f.said for f in several], Exchange("questions", asked, spaced, full, short))
            )
        return items

    def counts(self, n: int, used: Used) -> list[Item]:
        """How many have a value, up to nine."""
        rng = self.rng
        items = []
        for _ in range(max(1, n // 5)):
            relation = rng.choice(self._attributes) if rng.random() < 0.7 else self._unheard()
            value = self.pools.value(relation.kind)
            name = relation.name, value.spaced.tobytes()
            if name in used.values or name in used.reserved:
                continue
            subjects = [
                self.pools.subject(True) for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 7)))
            ]
            made = (self.fact(relation, subject, used, value) for subject in subjects)
            facts = [fact for fact in made if fact is not None]
            used.reserved.add(name)
            others = (
                self.fact(relation, self.pools.subject(True), used)
                for _ in range(rng.randint(0, 3))
            )
            items += [Item([fact.said]) for fact in others if fact is not None]
            asked = self._asked(self._counted, {**relation.slots, "x": value})
            number = self._counts[len(facts)]
            exchange = self._exchange("count", asked, self._counted_opening, number)
            items.append(Item([fact.said for fact in facts], exchange))
        return items
