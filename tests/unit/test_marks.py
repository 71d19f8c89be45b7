"""Where a chat's system prompt and question are, in tokens."""

import re

import pytest

from snapkv_local.errors import ConfigError, PromptError
from snapkv_local.prompt.chat import Chat
from snapkv_local.prompt.locate import question_of, system_of
from snapkv_local.prompt.parts import Parts, check
from snapkv_local.prompt.spelling import Spelling

HEAD, TAIL = "<s>system\n{}</s>\n<s>user\n", "</s>\n<s>assistant\n"


def spelling(text: str) -> Spelling:
    """Control tokens, words with the space before them, and white space."""
    return Spelling.of([piece.encode() for piece in re.findall(r"</?s>| ?[^\s<]+|\s", text)])


def words(spelt: Spelling, span: tuple[int, int]) -> str:
    return spelt.data[spelt.begins[span[0]] : spelt.begins[span[1]]].decode()


def write(*turns: tuple[str, str], tail: str = TAIL) -> str:
    # strips, as many templates do
    shown = [f"<s>{role}\n{text.strip()}" for role, text in turns]
    return "</s>\n".join(shown) + tail


def chat(*turns: tuple[str, str]) -> Chat:
    return Chat([{"role": role, "content": text} for role, text in turns], {})


SYSTEM = ("system", "Answer in short.\n\nBe kind. ")
DOCUMENT = "The cat sleeps.\n\nThe dog barks."


@pytest.mark.parametrize(
    ("turns", "question"),
    [
        ([("user", f"{DOCUMENT}\n\nWho barks? ")], "Who barks?"),
        ([("user", f"{DOCUMENT}\n \t\n Who\nbarks?")], "Who\nbarks?"),
        ([SYSTEM, ("user", "Who barks?")], "Who barks?"),
        ([SYSTEM, ("user", "Hi"), ("assistant", "Hello"), ("user", "Who?")], "Who?"),
        # words that the template has, and words that were said before
        ([("user", "assistant"), ("assistant", "user"), ("user", "assistant")], "assistant"),
        ([("user", "a"), ("assistant", "a"), ("user", "a")], "a"),
        ([("user", "Où est l'été ?")], "Où est l'été ?"),
    ],
)
def test_the_question_is_the_last_paragraph_of_the_last_user_turn(turns, question):
    spelt = spelling(write(*turns))
    found = question_of(spelt, chat(*turns), TAIL.encode())
    assert words(spelt, found).strip() == question
    # of these words, the last ones
    assert words(spelt, (found[1], len(spelt.begins) - 1)) == TAIL


def test_a_question_before_a_call_of_a_tool():
    turns = [("user", "Who barks?"), ("assistant", "look()"), ("tool", "the dog")]
    spelt = spelling(write(*turns))
    assert words(spelt, question_of(spelt, chat(*turns), TAIL.encode())) == "Who barks?"


def test_content_in_parts():
    parts = [{"type": "text", "text": DOCUMENT + "\n"}, {"type": "text", "text": "Who barks?"}]
    given = Chat([{"role": "user", "content": parts}], {})
    spelt = spelling(write(("user", f"{DOCUMENT}\n\nWho barks?")))
    assert words(spelt, question_of(spelt, given, TAIL.encode())) == "Who barks?"


@pytest.mark.parametrize("turns", [[], [("system", "Talk.")], [("user", " ")]])
def test_nobody_asks(turns):
    spelt = spelling(write(("system", "Talk."), ("user", "")))
    assert question_of(spelt, chat(*turns), TAIL.encode()) is None


@pytest.mark.parametrize(
    "written",
    [
        write(("user", "who barks?")),
        # what was said before is not the last turn
        write(("user", "Who barks?"), ("assistant", "The dog."), ("user", "[removed]")),
    ],
)
def test_a_template_that_changes_the_question(written):
    with pytest.raises(ConfigError, match="the last user turn: is not to be found in the prompt"):
        question_of(spelling(written), chat(("user", "Who barks?")), TAIL.encode())


@pytest.mark.parametrize(
    ("turns", "head", "system"),
    [
        ([SYSTEM, ("user", "Hi")], "<s>system\n{}</s>\n<s>user\n", None),
        # without one, the template's own
        ([("user", "Hi")], "<s>user\n", None),
        # a conversation that the user does not begin
        ([SYSTEM, ("assistant", "Hi"), ("user", "Who?")], "<s>system\n{}</s>\n<s>user\n", "<s>"),
    ],
)
def test_the_system_prompt_is_all_before_the_first_text(turns, head, system):
    head = head.format(SYSTEM[1].strip())
    spelt = spelling(write(*turns))
    begin, end = system_of(spelt, chat(*turns), head.encode())
    assert begin == 0
    found = words(spelt, (0, end))
    assert found == head if system is None else found.endswith("</s>\n" + system)


def test_a_template_that_leaves_the_system_prompt_out():
    spelt = spelling(write(("user", "Hi")))
    with pytest.raises(ConfigError, match=r"the system prompt: is not .*Llama.set_protected\(\)"):
        system_of(spelt, chat(SYSTEM, ("user", "Hi")), b"<s>user\n")


def test_tokens_that_hold_bytes():
    spelt = Spelling.of([b"a", "é".encode()[:1], "é".encode()[1:] + b"b", b"", b"c. D"])
    assert spelt.begins.tolist() == [0, 1, 2, 4, 4, 8]
    at = spelt.find("éb")
    assert (at, spelt.span(at, at + 3), spelt.before(at)) == (1, (1, 3), (0, 1))
    assert spelt.span(4, 5) == (4, 5)
    with pytest.raises(PromptError, match="is not spelt by its tokens"):
        spelt.find("e")
    assert spelling("One two. Three!\nFour").sentences(0, 20) == {2, 3, 4}


@pytest.mark.parametrize(
    ("parts", "n_kept", "message"),
    [
        (Parts(), 40, None),
        (Parts(protected=((0, 6), (3, 8), (95, 100))), 40, None),
        # twice protected counts once; what the window holds does not
        (Parts(protected=((0, 6), (3, 9), (68, 100))), 40, "hold 9 protected ones, .* 41 or more"),
        (Parts(protected=((0, 6), (3, 9), (68, 100))), 100, None),
        (Parts(question=(20, 70)), 40, None),
        (Parts(question=(20, 71)), 40, "the question of 51 tokens: is most of the prompt of 100"),
        (Parts(question=(20, 71)), 100, None),
    ],
)
def test_parts_that_do_not_fit(parts, n_kept, message):
    if message is None:
        check(parts, 100, n_kept, 32)
        return
    with pytest.raises(ConfigError, match=message):
        check(parts, 100, n_kept, 32)
