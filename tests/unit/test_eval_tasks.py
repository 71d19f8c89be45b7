"""Tasks: what a case holds, how documents are fitted, which texts and facts are whose."""

import itertools
import json
import random
import re

import pytest

from snapkv_local.errors import ConfigError, PromptError, TextFileError
from snapkv_local.eval import prose, tasks, words
from snapkv_local.eval.draft import Draft, Planted, Question
from snapkv_local.eval.render import answer, fit
from snapkv_local.eval.tasks import Wanted
from snapkv_local.eval.tasks.count import TIMES

USER, ANSWER = 256, 257
SPELT = {USER: b"<system>Be brief.</system><user>", ANSWER: b"</user><answer>"}


class FakeTokens:
    """A byte is a token; what a template adds is one token at either end."""

    def chat(self, content):
        return [USER, *content.encode(), ANSWER]

    def text(self, text, *, begins):
        return list(text.encode())

    def spell(self, tokens):
        return [SPELT.get(token) or bytes([token]) for token in tokens]


TOKENS = FakeTokens()
LENGTH = 4096
WANTED = Wanted(lengths=(LENGTH,), n_documents=4)
MADE = list(tasks.TASKS)
CHAT = [name for name in MADE if name not in ("continue", "code")]


def spell(tokens):
    return b"".join(TOKENS.spell(tokens)).decode()


def made(name, **changes):
    wanted = Wanted(**{**vars(WANTED), **changes})
    return list(tasks.get(name).cases(TOKENS, wanted))


@pytest.fixture(scope="module")
def cases():
    return {name: made(name) for name in MADE}


@pytest.mark.parametrize("name", MADE)
def test_cases_of_every_task(cases, name):
    found = cases[name]
    per_document = {"continue": 1, "code": 1, "in-turn": 10}.get(name, 3)
    assert len(found) == 4 * per_document
    assert len({case.id for case in found}) == len(found)
    assert len({case.document for case in found}) == 4
    for case in found:
        assert case.task == name and case.length == LENGTH
        assert len(case.prompt) <= LENGTH
        assert case.after and case.gold
        assert list(case.sentences) == sorted(set(case.sentences))
        assert case.sentences[0] == 0 and case.sentences[-1] < len(case.prompt)


@pytest.mark.parametrize("name", MADE)
def test_documents_fill_the_length(cases, name):
    """To the last word: the longest of a document's prompts has no room for another one."""
    for document in {case.document for case in cases[name]}:
        longest = max(len(c.prompt) for c in cases[name] if c.document == document)
        assert longest > LENGTH - 40  # a key of 32 digits is a word


@pytest.mark.parametrize("name", MADE)
def test_same_seed_same_cases_and_another_seed_others(name):
    small = {"lengths": (2048,), "n_documents": 1}
    first, again = made(name, **small), made(name, **small)
    assert [c.digest() for c in first] == [c.digest() for c in again]
    assert first[0].prompt != made(name, **small, seed=1)[0].prompt


@pytest.mark.parametrize("name", ["needle", "needles", "question-first", "question-after"])
def test_the_answer_is_in_the_document(cases, name):
    for case in cases[name]:
        statement = spell(case.after).partition("<answer>")[2] or spell(case.after)
        assert statement + spell(case.gold) in spell(case.prompt)


@pytest.mark.parametrize("name", ["values", "queries"])
def test_an_answer_of_several_facts(cases, name):
    """All in the document, and in the answer's order where one person has them."""
    for case in cases[name]:
        numbers = spell(case.gold).strip().split(", ")
        assert len(set(numbers)) == 4
        places = [
            spell(case.prompt).index(
                f" with the number {n}." if name == "values" else f" has the number {n}."
            )
            for n in numbers
        ]
        if name == "values":
            assert places == sorted(places)
        question = spell(case.prompt[slice(*case.question)])
        opening = spell(case.after)
        assert question.removeprefix("Which numbers have the ").rstrip("?") in opening


def test_ten_facts_are_named_in_turn(cases):
    """The question names none of them; the answer up to a value has all values before."""
    for document in {case.document for case in cases["in-turn"]}:
        found = [case for case in cases["in-turn"] if case.document == document]
        assert len({case.prompt for case in found}) == 1
        question = spell(found[0].prompt[slice(*found[0].question)])
        for case in found:
            statement = spell(case.after).rpartition("Next comes ")[2].partition(". ")[2]
            assert statement + spell(case.gold) in spell(case.prompt)
            assert not {word for word in re.findall("[A-Z][a-z]+", statement) if word in question}
        for before, after in itertools.pairwise(found):
            assert spell(after.after).startswith(spell(before.after) + spell(before.gold))


def test_the_second_step_is_not_in_the_question(cases):
    for case in cases["second-step"]:
        question = spell(case.prompt[slice(*case.question)])
        _, _, statement = spell(case.after).rpartition("the text says of ")
        (who,) = re.findall("does ([A-Z][a-z]+) confide", question)
        other, _, opening = statement.partition(". ")
        assert f"{who} tells everything to one friend only, and that is {other}." in spell(
            case.prompt
        )
        assert other not in question and opening + spell(case.gold) in spell(case.prompt)


def test_hex_keys(cases):
    for case in cases["hex-keys"]:
        (key,) = re.findall(r"key ([0-9a-f]{32})\?", spell(case.prompt))
        assert f"{key}:{spell(case.gold)}\n" in spell(case.prompt)


def test_a_hundred_questions_about_a_document_are_all_different():
    found = made("needle", lengths=(20_000,), n_documents=1, n_questions=100)
    questions = {spell(case.prompt[slice(*case.question)]) for case in found}
    assert len(questions) == len(found) == 100


def test_depths_are_everywhere():
    depths = sorted(c.depth for c in made("needle", n_documents=8))
    assert max(b - a for a, b in zip([0, *depths], [*depths, 1], strict=True)) < 0.12


def test_depths_on_a_grid():
    """Each as often as the others, and none with documents of one kind of text only."""
    found = made("needle", lengths=(2048,), n_documents=12, n_questions=1, n_depths=4)
    by_depth = {}
    for i, case in enumerate(found):
        by_depth.setdefault(case.depth, []).append(i % 2)
    assert sorted(by_depth) == [0.125, 0.375, 0.625, 0.875]
    assert all(len(kinds) == 3 and set(kinds) == {0, 1} for kinds in by_depth.values())


def test_depth_is_where_the_answer_stands(cases):
    for case in cases["needle"]:
        at = spell(case.prompt).index(spell(case.after)) / len(spell(case.prompt))
        assert at == pytest.approx(case.depth, abs=0.08)


def test_the_question_and_what_is_before_the_user_are_marked(cases):
    for case in cases["needle"]:
        assert case.system == (0, 1)
        question = spell(case.prompt[slice(*case.question)])
        assert question.endswith("?")
        assert spell(case.prompt).endswith(f"\n\n{question}{SPELT[ANSWER].decode()}")
    for case in cases["question-first"]:
        question = spell(case.prompt[slice(*case.question)])
        assert f"answer this question: {question}\n\n" in spell(case.prompt)
        assert case.question[1] < 200


def test_a_question_after_the_compression_is_in_no_prompt(cases):
    found = cases["question-after"]
    for case in found:
        assert case.question is None
        assert ANSWER not in case.prompt
        assert case.after[0] == ord("\n") and ANSWER in case.after
    # three questions share a prompt
    assert len({case.prompt for case in found}) == 4


def test_questions_of_a_document_share_it(cases):
    for name in CHAT:
        found = [c for c in cases[name] if c.document == cases[name][0].document]
        texts = {spell(c.prompt[: LENGTH // 2]).replace("question", "") for c in found}
        assert len(texts) == (3 if name == "question-first" else 1)


@pytest.mark.parametrize("name", ["needle", "trace", "continue"])
def test_no_sentence_is_there_twice(name):
    for case in made(name, lengths=(20_000,), n_documents=2):
        sentences = [s for s in re.split(r"(?<=[.!?])\s+", spell(case.prompt)) if len(s) > 40]
        assert len(sentences) > 100
        assert len(set(sentences)) == len(sentences)


def test_splits_share_no_words():
    for items in (
        words.NAMES,
        words.CITIES,
        words.COLOURS,
        words.CITY,
        words.COLOUR,
        words.ROOM,
        words.THINGS,
    ):
        tune, test = (set(words.own(items, split)) for split in words.SPLITS)
        assert not tune & test
        assert tune | test == set(items)


@pytest.mark.parametrize("name", MADE)
def test_splits_share_no_texts(name):
    found = {}
    for split in words.SPLITS:
        sentences = set()
        for case in made(name, split=split, n_documents=6):
            end = case.question[0] if case.question and name != "question-first" else None
            text = spell(case.prompt[:end])
            sentences |= {s for s in re.split(r"(?<=[.!?])\s+|\n", text) if len(s) > 60}
        found[split] = sentences
    assert not found["tune"] & found["test"]


def test_prose_is_long_enough():
    for document in (0, 1):
        for n_words in (100, 10_000):
            sentences = prose.prose(random.Random(1), "test", n_words, document)
            assert sum(len(s.split()) for s in sentences) >= n_words
            whole = [s.strip() for s in sentences if len(s) > 32]
            assert len(set(whole)) == len(whole)


def test_more_prose_than_there_are_sentences():
    with pytest.raises(ConfigError, match="give shorter --lengths"):
        prose.generated(random.Random(1), "test", 10**7)


def test_distractors_have_the_form_of_the_needle(cases):
    for case in cases["needles"]:
        text, opening = spell(case.prompt), spell(case.after)
        name = next(n for n in words.NAMES if n in opening)
        form = re.escape(opening).replace(name, "([A-Z][a-z]+)")
        assert len(re.findall(form, text)) == 5


def test_frequent_words_are_as_frequent_as_the_answers_say(cases):
    for document in {case.document for case in cases["count"]}:
        three = [c for c in cases["count"] if c.document == document]
        words_there = spell(three[0].prompt[: three[0].question[0]]).split()
        counts = [words_there.count(spell(case.gold).strip()) for case in three]
        others = set(words_there) - {spell(case.gold).strip() for case in three}
        assert len(counts) == len(TIMES)
        assert counts[0] > counts[1] > counts[2] > max(words_there.count(w) for w in others)


def test_a_chain_of_variables_leads_to_the_number(cases):
    for case in cases["trace"]:
        text = spell(case.prompt)
        number = re.search(r"the value (\d+)", spell(case.prompt[slice(*case.question)]))[1]
        found = {number}
        for name, value in re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)\.", text):
            if value in found:
                found.add(name)
        assert sorted(found - {number}) == sorted(spell(case.gold).strip().split(", "))


def test_code_goes_on_as_the_file_does(cases):
    for case in cases["code"]:
        assert "\n" in spell(case.prompt)
        assert len(case.after) == 1
        assert spell(case.gold)[:1] in (" ", "\n")


def test_fit_takes_what_is_planted_and_cuts_the_filler():
    draft = Draft(
        filler=tuple(f"Sentence number {i} is here. " for i in range(100)),
        planted=(Planted("The end is near. ", 1.0), Planted("It begins. ", 0.0)),
        questions=(
            Question("When?", "It is", " near"),
            Question("Where is it then?", "It is", " x"),
        ),
    )
    first, second = fit(TOKENS, draft, 500, "t", "t/500/0")
    assert len(second.prompt) in range(490, 501)
    assert len(first.prompt) < len(second.prompt)
    assert first.prompt[0] == USER
    text = spell(first.prompt)
    assert text.index("It begins. Sentence number 0") < text.index("The end is near. ")


@pytest.mark.parametrize(("length", "says"), [(5, "is too short"), (5000, "longer than the text")])
def test_lengths_that_cannot_be(length, says):
    draft = Draft(("A sentence. ",) * 20, (), (Question("Is it?", "It", " is"),))
    with pytest.raises(PromptError, match=says):
        fit(TOKENS, draft, length, "t", "t/0")


def test_a_token_that_holds_a_part_of_the_answer_is_scored():
    class Pairs(FakeTokens):
        def text(self, text, *, begins):
            data = text.encode()
            return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]

        def spell(self, tokens):
            return [token.to_bytes(2, "big") for token in tokens]

    opening, gold = answer(Pairs(), "abc", "defgh")
    assert b"".join(Pairs().spell(opening)) == b"ab"
    assert b"".join(Pairs().spell(gold)) == b"cdefgh"


# files


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="mine.jsonl"):
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def of_file(kind, path, **changes):
    return list(tasks.get(f"{kind}:{path}").cases(TOKENS, Wanted(**changes)))


def test_own_questions(write):
    path = write(
        {"document": "Ann is in Rome.", "question": "Where is Ann?", "answer": "Rome",
         "opening": "Ann is in"},
        "",
        {"document": "Bo is in Bern.", "question": "Where is Bo?", "answer": "Bern"},
        {"document": "Ann is in Rome.", "question": "Who is in Rome?", "answer": "Ann"},
        {"prompt": "Ü: first part\n\nsecond part\n\nWho?", "answer": " me "},
    )  # fmt: skip
    ann, who, bo, bare = of_file("jsonl", path)
    assert (ann.document, who.document) == (bo.document.replace("/1", "/0"),) * 2
    assert spell(ann.prompt).endswith("Where is Ann?</user><answer>")
    assert (spell(ann.after), spell(ann.gold)) == ("Ann is in", " Rome")
    # without an opening the prompt's last token is fed after the compression
    assert bo.prompt[-1] != ANSWER and bo.after == (ANSWER,)
    assert spell(bo.gold) == "Bern"
    assert spell(bare.prompt[slice(*bare.question)]) == "Who?"
    assert spell(bare.gold) == "me"
    assert len(of_file("jsonl", path, n_documents=1)) == 2


def test_longbench(write):
    path = write(
        {"input": "Where?", "context": "In Rome.", "answers": ["Rome", "in Rome"], "length": 9,
         "dataset": "x", "all_classes": None, "_id": "1"},
    )  # fmt: skip
    (case,) = of_file("longbench", path)
    assert "In Rome.\n\nWhere?" in spell(case.prompt)
    assert spell(case.gold) == "Rome"
    as_list = path.with_suffix(".json")
    as_list.write_text("[" + path.read_text() + "]")
    assert of_file("longbench", as_list)[0].digest() == case.digest()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"prompt": "x", "answer": "y"}, "{not json"], r"mine.jsonl, line 2: is not JSON"),
        ([{"prompt": "x"}], r'entry 1: .*"answer" is missing; give each entry "document"'),
        ([{"document": "x", "answer": "y"}], r'"question" is missing'),
        ([{"prompt": "x", "answer": "  "}], "the answer is empty"),
        ([{"document": "x", "question": " ", "answer": "y"}], "the question is empty"),
        ([{"prompt": 3, "answer": "y"}], '"prompt" is not a text'),
        (['"text"'], "it is not a JSON object"),
        ([""], "has no entries"),
    ],
)
def test_malformed_files_are_named_with_their_line(write, rows, says):
    with pytest.raises(PromptError, match=says):
        of_file("jsonl", write(*rows))


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(PromptError, match="cannot be read"):
        of_file("jsonl", tmp_path / "none.jsonl")
    (tmp_path / "x").write_bytes(b"\x89PNG\x00")
    with pytest.raises(TextFileError, match="x: is a PNG picture, and no text"):
        of_file("jsonl", tmp_path / "x")


def test_settings_of_a_file_change_with_it(write):
    path = write({"prompt": "x", "answer": "y"})
    before = tasks.get(f"jsonl:{path}").settings()
    write({"prompt": "x", "answer": "z"})
    assert tasks.get(f"jsonl:{path}").settings() != before


def test_unknown_tasks():
    with pytest.raises(ConfigError, match=r"needel.*choose from needle, .*jsonl:FILE"):
        tasks.get("needel")
    with pytest.raises(ConfigError, match="is not a task"):
        tasks.get("jsonl:")
