"""The example of replicas: which one answers, and how another one goes on with an answer."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "examples" / "ray_serve" / "routing.py"
CHATS = "/v1/chat/completions"
REPLICAS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def routing():
    spec = importlib.util.spec_from_file_location("ray_serve_routing", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def test_all_requests_of_a_conversation_have_one_key(routing):
    first = {"messages": [user("Who?")]}
    later = {"messages": [user("Who?"), said("She."), user("Where?")], "temperature": 0}
    other = {"messages": [user("When?")]}
    assert routing.affinity(CHATS, first) == routing.affinity(CHATS, later)
    assert routing.affinity(CHATS, first) != routing.affinity(CHATS, other)


def test_a_system_message_alone_makes_no_conversation(routing):
    system = {"role": "system", "content": "Be brief."}
    keys = {
        routing.affinity(CHATS, {"messages": [system, user(text)]}) for text in ("Who?", "Why?")
    }
    assert len(keys) == 2


def test_a_document_goes_before_the_conversation(routing):
    about = [{"document": "station", "messages": [user(text)]} for text in ("Who?", "Where?")]
    keys = {routing.affinity(CHATS, body) for body in about}
    assert len(keys) == 1
    assert keys != {routing.affinity(CHATS, {**about[0], "document": "house"})}


@pytest.mark.parametrize("messages", [[], "Who?", [None], [{"content": "Who?"}]])
def test_bodies_that_the_server_will_refuse_have_a_key(routing, messages):
    assert isinstance(routing.affinity(CHATS, {"messages": messages}), str)


def test_the_order_is_that_of_the_key_whatever_the_order_of_the_replicas(routing):
    assert routing.ranked("key", REPLICAS) == routing.ranked("key", REPLICAS[::-1])
    assert sorted(routing.ranked("key", REPLICAS)) == REPLICAS


def test_keys_are_spread_and_only_those_of_a_replica_that_dies_move(routing):
    keys = [f"key {i}" for i in range(400)]
    before = {key: routing.ranked(key, REPLICAS) for key in keys}
    after = {key: routing.ranked(key, REPLICAS[:-1]) for key in keys}
    assert min(Counter(order[0] for order in before.values()).values()) > 60
    for key in keys:
        assert after[key] == [replica for replica in before[key] if replica != "d"]


def test_an_answer_that_has_begun_goes_on_from_its_text(routing):
    body = {"messages": [user("Who?")], "max_tokens": 10, "stream": True}
    goes_on = routing.continued(body, "She", 3)
    assert goes_on["messages"] == [user("Who?"), said("She")]
    assert goes_on["continue_final_message"] is True
    assert goes_on["max_tokens"] == 7
    assert body["messages"] == [user("Who?")]


def test_an_answer_of_which_nothing_was_sent_is_asked_for_again(routing):
    body = {"messages": [user("Who?")], "tools": [{}]}
    assert routing.continued(body, "", 0) is body


@pytest.mark.parametrize(
    "bound", [{"tools": [{}]}, {"response_format": {"type": "json_object"}}, {"n": 2}]
)
def test_answers_that_cannot_go_on(routing, bound):
    assert routing.continued({"messages": [user("Who?")], **bound}, "She", 1) is None


def test_what_a_chunk_says(routing):
    def heard(choice):
        return routing.heard({"choices": [choice]})

    assert heard({"delta": {"content": "She"}}) == "She"
    assert heard({"delta": {"role": "assistant", "content": None}}) == ""
    assert heard({"delta": {"reasoning_content": "Well"}}) is None
    assert heard({"delta": {"tool_calls": [{}]}}) is None
    assert heard({"text": "She"}) is None
