"""What a request tells the chat template beside messages and tools, such as enable_thinking."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from snapkv_local.server.errors import refusal

if TYPE_CHECKING:
    from snapkv_local.llama.llama import Llama

_FIELD = "chat_template_kwargs"
# what llama_cpp gives a template itself, beside what its handlers take
_TAKEN = {"eos_token", "bos_token", "raise_exception", "add_generation_prompt", "strftime_now"}


@contextlib.contextmanager
def given(llm: Llama, options: Mapping[str, Any]) -> Iterator[None]:
    """While open, the model's chat template can read these options.

    Raises:
        ApiError: there is no template, or an option is none that a request may give.
    """
    if not options:
        yield
        return
    handlers: dict[Any, Any] = llm._chat_handlers
    handler = handlers.get(llm.chat_format)
    if handler is None:
        if set(options) == {"enable_thinking"}:  # nothing here thinks
            yield
            return
        raise refusal("the model has no chat template: leave it out", _FIELD)
    taken = _TAKEN | set(inspect.signature(handler).parameters)
    for name, value in options.items():
        if name in taken:
            raise refusal(f"{name}: is what the server gives the template: leave it out", _FIELD)
        if not name.isidentifier():
            raise refusal(f"{name}: is no name that a template can read", _FIELD)
        # no text of a request becomes a control token
        if isinstance(value, str) and llm.control_words().suspects(value):
            raise refusal(f"{name}: holds a control word of the model: leave it out", _FIELD)
    handlers[llm.chat_format] = functools.partial(handler, **options)
    try:
        yield
    finally:
        handlers[llm.chat_format] = handler
