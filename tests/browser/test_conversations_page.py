"""Several conversations on the chat page: they keep apart, are kept, and their states are the server's."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import snapkv_local

# two places; what has to leave them rests in memory
OPTIONS = ("--ctx", "8k", "--budget", "192", "--max-tokens", "1600", "--parallel", "2")
# tokens of an answer that is stopped while it is written, however slow the browser is
LONG = 1600
# of others
MOST = 100
# notes what streams say, by the conversation's first question
HEAR = """
globalThis.heard = {};
const stream = answerTo;
answerTo = async function* (body, signal) {
  for await (const event of stream(body, signal)) {
    if (event.piece) (heard[body.messages[0].content] ??= []).push(event.piece);
    yield event;
  }
};
"""


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("resting")
    options = ("--max-queue", "0", "--cache-ram", "64MiB", "--cache-dir", str(folder))
    return serve(*OPTIONS, *options, "--port", "0")


@pytest.fixture
def page(open_page: Callable[..., Any], server: Any) -> Any:
    page, problems = open_page(server.url)
    page.set_default_timeout(120_000)
    page.wait_for_selector("#model:not(:empty)")
    page.problems = problems
    ask_with(page, max_tokens=MOST)
    return page


def set_length(page: Any, n: int) -> None:
    """Have each answer of the page take n tokens."""
    ask_with(page, ignore_eos=True, max_tokens=n)


def ask_with(page: Any, **fields: Any) -> None:
    """Have these fields in all requests of the page."""

    def changed(route: Any) -> None:
        body = {**route.request.post_data_json, **fields, "seed": 1}
        route.continue_(post_data=json.dumps(body))

    page.unroute_all()
    page.route("**/v1/chat/completions", changed)


def text(begin: int) -> str:
    """About 400 tokens."""
    file = Path(snapkv_local.__file__).parent / "demo" / "station.txt"
    return file.read_text(encoding="utf-8")[begin : begin + 1300]


def begin(page: Any, question: str, pasted: str = "") -> None:
    page.get_by_role("button", name="New conversation").first.click()
    if pasted:
        page.get_by_role("button", name="paste text").click()
        page.get_by_label("Document text").fill(pasted)
    send(page, question)


def send(page: Any, question: str) -> None:
    page.get_by_label("Question", exact=True).fill(question)
    page.keyboard.press("Enter")


def switch(page: Any, title: str) -> None:
    page.locator(".entry", has_text=title).click()


def n_answers(page: Any, n: int) -> None:
    page.wait_for_selector(f".figures >> nth={n - 1}")


def wait(page: Any, expression: str, expected: Any = True) -> None:
    """Until it has a value; the page's policy forbids it to do that by itself."""
    ends = time.monotonic() + 120
    while (found := page.evaluate(expression)) != expected:
        assert time.monotonic() < ends, (
            f"{expression} is {found}, not {expected}: {page.inner_text('#status')}"
        )
        page.wait_for_timeout(50)


def states(page: Any, *expected: str) -> None:
    """Wait until the page says this of its conversations, the newest one first: title and state."""
    wait(
        page, "conversations.map((each) => `${titleOf(each)}: ${stateOf(each)[0]}`)", list(expected)
    )


def held(server: Any) -> dict[str, Any]:
    return {e["conversation"]: e for e in server.get("/slots?resting=true").json()}


def test_conversations_keep_apart_and_say_where_they_are(page: Any, server: Any) -> None:
    asked: list[Any] = []
    page.on("request", lambda r: asked.append(r.post_data_json) if r.post_data else None)

    begin(page, "First, please", text(0))
    n_answers(page, 1)
    begin(page, "Second, please", text(3000))
    n_answers(page, 1)
    switch(page, "First")
    send(page, "And what else?")
    n_answers(page, 2)
    switch(page, "Second")
    send(page, "Who else?")
    n_answers(page, 2)

    # each request has its own conversation, of which the server goes on
    for body, begins, others in ((asked[2], text(0), text(3000)), (asked[3], text(3000), text(0))):
        said = [message["content"] for message in body["messages"]]
        assert len(said) == 3
        assert said[0].startswith(begins[:1000])
        assert others[:1000] not in said[0]
    assert "were there" in page.inner_text(".figures >> nth=1")
    states(page, "Second, please: warm", "First, please: warm")

    # of two places a third one takes that of the first; a short one does not rest
    set_length(page, 8)
    begin(page, "Third")
    n_answers(page, 1)
    ask_with(page, max_tokens=MOST)
    states(page, "Third: warm", "Second, please: warm", "First, please: ram")
    first = page.evaluate("conversations.at(-1).held")
    entry = held(server)[first]
    assert (entry["id"], entry["rests_in"]) == (-1, "ram")
    shown = page.inner_text(".entry >> nth=2")
    assert f"{entry['n_tokens']:,} tokens · {entry['snapkv']['n_kept']} rows" in shown
    switch(page, "Second")
    send(page, "Again?")
    n_answers(page, 3)
    switch(page, "First")
    send(page, "Again?")
    n_answers(page, 3)
    assert "were there" in page.inner_text(".figures >> nth=2")
    states(page, "Third: cold", "Second, please: warm", "First, please: warm")
    assert page.evaluate("conversations.at(-1).held") == first

    # a reload keeps them, and which one is shown; deleting takes one from here and from the server
    turns = page.inner_text("#chat")
    page.reload()
    page.wait_for_selector(".turn")
    assert page.inner_text("#chat") == turns
    states(page, "Third: cold", "Second, please: warm", "First, please: warm")
    page.get_by_role("button", name="Rename").click()
    page.get_by_label("Name").fill("The <b>first</b>")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep").click()
    assert page.inner_text("#title") == "The <b>first</b>"
    page.get_by_role("button", name="Delete").click()
    page.locator("#confirm-delete").click()
    wait(page, "conversations.length === 2")
    assert page.inner_text("#title") == "Second, please"
    wait(page, f"states.entries !== null && !states.entries.has('{first}')")
    assert first not in held(server)
    page.reload()
    page.wait_for_selector(".turn")
    states(page, "Third: cold", "Second, please: warm")
    assert page.problems == []


def test_an_answer_goes_on_while_others_are_read_and_asked(page: Any) -> None:
    set_length(page, LONG)
    page.evaluate(HEAR)
    begin(page, "First, please")
    page.wait_for_selector(".turn.assistant .text:not(:empty)")
    begin(page, "Second, please")
    page.wait_for_selector(".turn.assistant .text:not(:empty)")
    assert "answering" in page.locator(".entry", has_text="First").inner_text()
    assert "First" not in page.inner_text("#chat")

    # the queue has no room for a third one, which can be asked again
    begin(page, "Third, please")
    page.wait_for_selector("#status.error")
    assert "requests are waiting" in page.inner_text("#status")
    assert page.get_by_label("Question", exact=True).input_value() == "Third, please"
    page.get_by_role("button", name="Stop Second, please").click()
    wait(page, "!conversations[1].work")
    wait(page, "heard['First, please'].join('').length > 300")
    page.get_by_role("button", name="Stop First, please").click()
    page.wait_for_selector(".news:has-text('new') >> nth=1")

    said = page.evaluate("heard['First, please'].join('')")
    switch(page, "First")
    assert page.text_content(".turn.assistant .text") == said
    assert len(said) > 300
    switch(page, "Second")
    assert page.inner_text("#status") == "stopped"
    assert 0 < len(page.inner_text(".turn.assistant .text")) < len(said)
    switch(page, "New conversation")
    assert page.get_by_label("Question", exact=True).input_value() == "Third, please"
    assert page.problems == []


def test_two_windows_do_not_ask_in_one_conversation_at_once(page: Any) -> None:
    set_length(page, LONG)
    begin(page, "Both, please")
    page.wait_for_selector(".turn.assistant .text:not(:empty)")
    other = page.context.new_page()
    set_length(other, 8)
    other.goto(page.url)
    switch(other, "Both, please")
    send(other, "Meanwhile?")
    other.wait_for_selector("#status.error:has-text('another window')")
    assert other.get_by_label("Question", exact=True).input_value() == "Meanwhile?"

    page.click("#stop")
    wait(other, "navigator.locks.query().then(({ held }) => held.length)", 0)
    wait(other, "current.messages.length", 2)
    other.keyboard.press("Enter")
    n_answers(other, 1)
    said = ["Both, please", "Meanwhile?"]
    for each in (page, other):
        asked = "current.messages.filter(({ role }) => role === 'user').map((each) => each.content)"
        wait(each, asked, said)
    assert page.problems == []


def test_a_server_that_goes_and_comes_back(
    page: Any, serve: Callable[..., Any], server: Any, tmp_path: Path
) -> None:
    """It wrote the conversations to files, and they are gone on with from there."""
    options = (*OPTIONS, "--cache-ram", "0", "--cache-dir", str(tmp_path))
    first = serve(*options, "--port", "0")
    page.goto(first.url)
    page.wait_for_selector("#model:not(:empty)")
    begin(page, "First, please", text(0))
    n_answers(page, 1)
    set_length(page, LONG)
    send(page, "And what else?")
    wait(page, "document.querySelectorAll('.turn')[3]?.textContent.length > 100")
    first.end()
    page.wait_for_selector("#server:visible")
    assert "does not answer" in page.inner_text("#server")
    page.wait_for_selector("#status.error")
    assert "broke off" in page.inner_text("#status") or "shutting down" in page.inner_text(
        "#status"
    )
    said = page.inner_text("#chat")
    send(page, "Are you there?")
    wait(page, "document.getElementById('question').value !== ''")
    assert page.inner_text("#status") == "the server does not answer"
    states(page, "First, please: unknown")
    assert page.inner_text("#chat") == said

    serve(*options, "--port", first.port)
    page.wait_for_selector("#server", state="hidden")
    assert page.inner_text("#status") == ""
    states(page, "First, please: disk")
    ask_with(page, max_tokens=MOST)
    page.get_by_role("button", name="Ask").click()
    page.wait_for_selector(".figures:has-text('were there')")
    states(page, "First, please: warm")
    assert page.problems == []
