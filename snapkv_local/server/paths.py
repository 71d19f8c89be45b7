"""Paths with and without /v1, as llama-server has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI

_F = TypeVar("_F", bound=Callable[..., Any])


def at(
    app: FastAPI, paths: str, methods: Sequence[str] = ("POST",), **options: Any
) -> Callable[[_F], _F]:
    """Decorates what answers at some paths, of which the schema has the first.

    Args:
        paths: with blanks between them.
        options: of FastAPI.add_api_route().
    """

    def add(function: _F) -> _F:
        for i, path in enumerate(paths.split()):
            shown = options.get("include_in_schema", True) and i == 0
            app.add_api_route(
                path, function, methods=list(methods), **{**options, "include_in_schema": shown}
            )
        return function

    return add
