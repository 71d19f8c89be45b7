"""Keys with values, tables, chains of variables, and words of which some come often."""

from __future__ import annotations

import random

import frames
from exchanges import Exchange, Item, Used
from pieces import Ids, Spelling, Template, Word
from pools import Pools


class Structures:
    """Makes items that are no facts in sentences."""

    def __init__(self, spelling: Spelling, pools: Pools, rng: random.Random) -> None:
        self.rng, self.pools = rng, pools

        def templates(texts: tuple[str, ...]) -> list[Template]:
            return [Template(spelling, text) for text in texts]

        self._keys_asked, self._keys_backward = (
            templates(frames.KEYS_ASKED),
            templates(frames.KEYS_BACKWARD),
        )
        self._keys_opening = Template(spelling, frames.KEYS_OPENING)
        self._columns = [(spelling.word(name), kind) for name, kind in frames.COLUMNS]
        self._table_asked = templates(frames.TABLE_ASKED)
        self._table_backward = templates(frames.TABLE_BACKWARD)
        self._cell_opening = Template(spelling, frames.GENERIC_OPENING)
        self._corners = [spelling.word(w) for w in ("name", "key", "who", "entry", "record")]
        self._assigned = [
            (Template(spelling, a), Template(spelling, b)) for a, b in frames.ASSIGNED
        ]
        self._all_asked = templates(frames.VARIABLES_ASKED)
        self._all_openings = templates(frames.VARIABLES_OPENINGS)
        self._one_asked = templates(frames.VARIABLE_ASKED)
        self._frequent_asked = templates(frames.FREQUENT_ASKED)
        self._frequent_opening = Template(spelling, frames.FREQUENT_OPENING)
        self._ranks = [spelling.word(rank) for rank in frames.RANKS]
        self._encode = spelling.encode
        self._it_is = spelling.encode(frames.BACKWARD_OPENINGS[0])
        self._is = spelling.encode(" is")
        self._dot, self._comma, self._colon = (spelling.encode(c) for c in ".,:")

    def _ask(self, templates: list[Template], slots: dict[str, Word]) -> tuple[Ids, Ids]:
        ask = self.rng.choice(templates)
        return ask.write(slots, False), ask.write(slots, True)

    def _answer(self, task: str, asked: tuple[Ids, Ids], opening: Ids, value: Word) -> Exchange:
        full = [(opening, False), (value.spaced, True), (self._dot, False)]
        return Exchange(task, *asked, full, value.first)

    def keys(self, n: int, used: Used) -> list[Item]:
        """Lines of a key and its value."""
        rng = self.rng
        kind = rng.choice(("number", "number", "word", "code", "city"))
        backwards = 0.35 if kind != "word" else 0.0
        items = []
        for _ in range(n):
            key, value = rng.choice(self.pools.keys), self.pools.value(kind)
            if not used.is_new(key):
                continue
            slots = {"s": key, "x": value}
            if rng.random() < backwards and used.is_new(value):
                asked = self._ask(self._keys_backward, slots)
                exchange = self._answer("keys", asked, self._it_is, key)
            else:
                asked = self._ask(self._keys_asked, slots)
                exchange = self._answer(
                    "keys", asked, self._keys_opening.write(slots, False), value
                )
            after = self._colon + value.spaced
            items.append(Item([(key.spaced + after, key.first + after)], exchange, is_block=True))
        return items

    def table(self, n_rows: int, used: Used) -> list[Item]:
        """A table; the first item has its lines, and each further one a question about a cell."""
        rng, pools = self.rng, self.pools
        columns = rng.sample(self._columns, rng.randint(2, 5))
        for i in range(len(columns)):
            if rng.random() < 0.6:
                kind = rng.choice(("number", "number", "room", "city", "word", "small"))
                columns[i] = rng.choice(pools.plain), kind
        is_keyed = rng.random() < 0.3
        labels, rows = [], []
        for _ in range(n_rows):
            label = rng.choice(pools.keys) if is_keyed else pools.person()
            if used.is_new(label):
                labels.append(label)
                rows.append([pools.value(kind) for _, kind in columns])
        left, between, right = rng.choice(
            (("|", " |", " |"), ("", ",", ""), ("", ";", ""), ("", " |", ""))
        )
        ends = tuple(self._encode(text) if text else Ids("H") for text in (left, between, right))

        def line(cells: list[Word]) -> tuple[Ids, Ids]:
            out = Ids("H", ends[0])
            for i, cell in enumerate(cells):
                out += (ends[1] if i else Ids("H")) + (cell.spaced if out else cell.first)
            return out + ends[2], out + ends[2]

        corner = rng.choice(self._corners)
        head = line([corner, *(name for name, _ in columns)])
        said = [head, *(line([label, *row]) for label, row in zip(labels, rows, strict=True))]
        items = [Item(said, in_order=True, is_block=True)]
        values = [cell.spaced.tobytes() for row in rows for cell in row]
        for label, row in zip(labels, rows, strict=True):
            at = rng.randrange(len(columns))
            slots = {"s": label, "x": row[at], "a": columns[at][0]}
            if rng.random() < 0.35 and values.count(row[at].spaced.tobytes()) == 1:
                asked = self._ask(self._table_backward, slots)
                exchange = self._answer("table", asked, self._it_is, label)
            else:
                asked = self._ask(self._table_asked, slots)
                exchange = self._answer(
                    "table", asked, self._cell_opening.write(slots, False), row[at]
                )
            items.append(Item([], exchange))
        return items

    def variables(self, n: int, used: Used) -> list[Item]:
        """Chains of variables. Asked for all that have a number, or for the number of one."""
        rng = self.rng
        first, further = rng.choice(self._assigned)
        items = []
        for _ in range(max(2, n // 2)):
            names = [rng.choice(self.pools.variables) for _ in range(rng.randint(1, 4))]
            number = self.pools.value("number")
            if not all(used.is_new(name) for name in names) or not used.is_new(number):
                continue
            said = []
            for i, name in enumerate(names):
                slots = {"n": name, "v": number, "m": names[i - 1]}
                template = further if i else first
                said.append((template.write(slots, True), template.write(slots, False)))
            if rng.random() < 0.65:
                exchange = self._all(names, number)
            else:
                exchange = self._one(names[: rng.randint(1, len(names))], number)
            items.append(Item(said, exchange, in_order=rng.random() < 0.7))
        return items

    def _all(self, names: list[Word], number: Word) -> Exchange:
        slots = {"v": number}
        listed, short = Ids("H"), Ids("H")
        for i, name in enumerate(names):
            listed += (self._comma if i else Ids("H")) + name.spaced
            short += (self._comma + name.spaced) if i else name.first
        opening = self.rng.choice(self._all_openings).write(slots, False)
        full = [(opening, False), (listed, True), (self._dot, False)]
        return Exchange("variables", *self._ask(self._all_asked, slots), full, short)

    def _one(self, names: list[Word], number: Word) -> Exchange:
        """Step by step in a sentence: C is B, B is A, A is 7."""
        full: list[tuple[Ids, bool]] = []
        for i, name in reversed(list(enumerate(names))):
            opening = (self._comma + name.spaced if full else name.first) + self._is
            full += [(opening, False), ((names[i - 1] if i else number).spaced, True)]
        full.append((self._dot, False))
        # without steps, two are as many as it can be taught
        short = number.first if len(names) < 3 else Ids("H")
        return Exchange("variable", *self._ask(self._one_asked, {"n": names[-1]}), full, short)

    def frequent(self, n_tokens: int, used: Used) -> list[Item]:
        """A row of words, three of which come more often; the first item is the row."""
        rng = self.rng
        pool = rng.choice((self.pools.plain, self.pools.variables, self.pools.keys))
        block, times = 40, (rng.randint(7, 10), rng.randint(4, 5), rng.randint(2, 3))
        words = [word for word in rng.choices(pool, k=180) if used.is_new(word)]
        if len(words) < 50:
            return []
        often, rare = words[:3], words[3:]
        row = Ids("H")
        while len(row) < n_tokens:
            some = [word for word, n in zip(often, times, strict=True) for _ in range(n)]
            some += rng.choices(rare, k=block - len(some))
            rng.shuffle(some)
            for word in some:
                row += word.spaced
        head = self._encode(rng.choice(frames.FREQUENT_HEAD))
        items = [Item([(head + row, head + row)], is_block=True)]
        for rank, word in zip(self._ranks, often, strict=True):
            slots = {"r": rank}
            asked = self._ask(self._frequent_asked, slots)
            opening = self._frequent_opening.write(slots, False)
            items.append(Item([], self._answer("frequent", asked, opening, word)))
        return items
