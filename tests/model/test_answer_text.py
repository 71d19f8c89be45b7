"""One text, however an answer is asked for; characters that lie in several tokens are whole."""

from functools import partial
from typing import Any

import pytest

from snapkv_local import Llama

CHAT = [{"role": "user", "content": "Repeat: 🎉🎉🎉"}]


@pytest.fixture(scope="module")
def make(make: Any, smollm2: str) -> Any:
    """SmolLM2, which repeats what it is asked to."""
    return partial(make, path=smollm2)


@pytest.fixture(scope="module", params=["compact", "full"])
def speaker(request: Any, make: Any) -> Llama:
    full = {"snapkv": None, "flash_attn": True} if request.param == "full" else {}
    return make(logits_all=True, **full)


def joined(chunks: Any) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def entries(response: Any) -> list[Any]:
    return (response["choices"][0]["logprobs"] or {"content": []})["content"]


@pytest.mark.parametrize(
    ("max_tokens", "stop", "text"),  # a party popper is three tokens
    [(2, [], ""), (8, [], "🎉🎉"), (9, ["🎉💥"], "🎉🎉🎉"), (9, ["x", "🎉🎉"], "")],
)
def test_a_chat_says_one_text(speaker: Llama, max_tokens: int, stop: list[str], text: str) -> None:
    def ask(**kwargs: Any) -> Any:
        return speaker.create_chat_completion(
            CHAT, temperature=0, max_tokens=max_tokens, stop=stop, **kwargs
        )

    whole = ask()["choices"][0]
    assert whole["message"]["content"] == text
    assert whole["finish_reason"] == ("stop" if len(stop) == 2 else "length")
    probed = ask(logprobs=True, top_logprobs=2)
    assert probed["choices"][0]["message"]["content"] == text
    assert joined(ask(stream=True)) == text
    chunks = list(ask(stream=True, logprobs=True, top_logprobs=2))
    assert joined(chunks) == text
    assert [entry for chunk in chunks for entry in entries(chunk)] == entries(probed)
    data = bytes(byte for entry in entries(probed) for byte in entry["bytes"])
    assert data.decode(errors="ignore") == text
    for entry in entries(probed):
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["bytes"] == entry["bytes"]  # at temperature 0
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]


def test_a_completion_says_one_text(speaker: Llama) -> None:
    def ask(**kwargs: Any) -> Any:
        return speaker.create_completion(
            "Party: 🎉🎉🎉 🎉🎉", temperature=0, max_tokens=5, **kwargs
        )

    whole = ask(logprobs=1)["choices"][0]
    logprobs = whole["logprobs"]
    assert whole["text"] == ask()["choices"][0]["text"] == "🎉\n\n"
    assert logprobs["text_offset"] == [13, 13, 13, 14, 15]
    chunks = [chunk["choices"][0] for chunk in ask(logprobs=1, stream=True)]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    for name, values in logprobs.items():
        assert [v for c in chunks if c["logprobs"] for v in c["logprobs"][name]] == values


def test_long_tokens_have_text(speaker: Llama) -> None:
    """llama_cpp leaves out those of more than 32 bytes."""
    text = b"x" + b" " * 80 + "漢字, 🎉".encode() + b"-" * 80
    assert speaker.detokenize(speaker.tokenize(text, add_bos=False)) == text
