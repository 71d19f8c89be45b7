"""The two patches of llama_cpp: contexts of ours in the place of its own, and models with their heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# first of all: it loads our library, which llama_cpp then uses
import snapkv_local.native.api  # isort: skip  # noqa: F401

from llama_cpp import _internals, llama_cpp

Blank = Callable[[], _internals.LlamaContext]

_blank: ContextVar[Blank | None] = ContextVar("snapkv_local_blank", default=None)


@contextmanager
def contexts(blank: Blank) -> Iterator[None]:
    """While open, contexts that llama_cpp makes on this thread are of a class of ours.

    Args:
        blank: makes an object of a subclass of llama_cpp's, whose __init__ llama_cpp then calls.
    """
    token = _blank.set(blank)
    try:
        yield
    finally:
        _blank.reset(token)


def _new_context(cls: type[_internals.LlamaContext], *_args: Any, **_kwargs: Any) -> Any:
    blank = _blank.get() if cls is _internals.LlamaContext else None
    return object.__new__(cls) if blank is None else blank()


# llama_cpp.Llama.__init__ makes its context by this class's name and has no argument to choose
# another. Changing __new__ leaves the class as it is for everybody else: the choice is made for one
# thread, within contexts().
_internals.LlamaContext.__new__ = _new_context  # type: ignore[method-assign,assignment]


_loads_heads: ContextVar[bool] = ContextVar("snapkv_local_loads_heads", default=False)
_default_params = llama_cpp.llama_model_default_params


@contextmanager
def prediction_heads(are_loaded: bool) -> Iterator[None]:
    """While open, models that llama_cpp loads on this thread have their prediction heads (MTP), or not.

    llama_cpp.Llama takes llama.cpp's default parameters and has no argument for this one.
    """
    token = _loads_heads.set(are_loaded)
    try:
        yield
    finally:
        _loads_heads.reset(token)


def _model_params() -> Any:
    params = _default_params()
    params.load_mtp = _loads_heads.get()
    return params


llama_cpp.llama_model_default_params = _model_params
