"""What an error is about: its class and the input at fault. How a family says it, one test reads."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from snapkv_local.errors import SnapKVError


@contextmanager
def refused(kind: type[SnapKVError], subject: object) -> Iterator[None]:
    """The block raises this very class of error, about this input as the caller gave it."""
    with pytest.raises(kind) as caught:
        yield
    assert (type(caught.value), caught.value.subject) == (kind, str(subject))
