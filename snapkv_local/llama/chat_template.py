"""A chat template in the place of the model's own: Jinja, or one that llama.cpp has by a name."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

# first of all: it loads our library, which llama_cpp then uses
from snapkv_local.native import api  # noqa: F401  # isort: skip

import jinja2
import llama_cpp
from llama_cpp import llama_chat_format
from llama_cpp import llama_cpp as lib

from snapkv_local.errors import ConfigError

# llama_cpp's name of the template in a model's file
DEFAULT = "chat_template.default"


def handler(llm: llama_cpp.Llama, template: str) -> Any:
    """What llama_cpp asks for a chat's prompt.

    Args:
        template: Jinja, or a name.

    Raises:
        ConfigError: it is no Jinja, or the name is none of llama.cpp's.
    """
    bos, eos = (_text(llm, token) for token in (llm.token_bos(), llm.token_eos()))
    if "{{" not in template and "{%" not in template:
        write = _built_in(template.strip(), eos)
        return llama_chat_format.chat_formatter_to_chat_completion_handler(write)
    try:
        return llama_chat_format.Jinja2ChatFormatter(
            template=template,
            eos_token=eos,
            bos_token=bos,
            stop_token_ids=[llm.token_eos()],
        ).to_chat_handler()
    except jinja2.TemplateSyntaxError as e:
        raise ConfigError(
            "chat_template", f"is no Jinja, in line {e.lineno}: {e.message}", "correct it"
        ) from e


def names() -> list[str]:
    """Of llama.cpp's own templates."""
    n = lib.llama_chat_builtin_templates(None, 0)
    found = (ctypes.c_char_p * n)()
    lib.llama_chat_builtin_templates(found, n)
    return sorted(name.decode() for name in found if name is not None)


def _built_in(name: str, eos: str) -> Callable[..., llama_chat_format.ChatFormatterResponse]:
    if name not in names():
        raise ConfigError(
            f"chat_template={name}",
            "is no Jinja, and no name that llama.cpp knows",
            f"give a template, or one of {', '.join(names())}",
        )

    def write(
        *, messages: Any, add_generation_prompt: bool = True, **_: Any
    ) -> llama_chat_format.ChatFormatterResponse:
        texts = [(each["role"].encode(), _content(each).encode()) for each in messages]
        chat = (lib.llama_chat_message * len(texts))(
            *(lib.llama_chat_message(role, content) for role, content in texts)
        )
        size = 256 + 2 * sum(len(role) + len(content) for role, content in texts)
        for _attempt in range(2):
            buffer = ctypes.create_string_buffer(size)
            n = lib.llama_chat_apply_template(
                name.encode(),
                chat,
                len(texts),
                add_generation_prompt,
                buffer,
                size,
            )
            if n <= size:
                break
            size = n
        if n < 0:
            raise ValueError(f"{name} cannot write these messages")
        prompt = buffer.raw[:n].decode("utf-8", "replace")
        return llama_chat_format.ChatFormatterResponse(prompt=prompt, stop=[eos])

    return write


def _content(message: Any) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or "" for part in content)


def _text(llm: llama_cpp.Llama, token: int) -> str:
    return "" if token < 0 else str(llm._model.token_get_text(token))
