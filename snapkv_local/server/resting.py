"""Conversations that have no sequence: in host memory, and then in files."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snapkv_local import mapped
from snapkv_local.errors import SnapKVError
from snapkv_local.server.errors import logger
from snapkv_local.storage import sealed

if TYPE_CHECKING:
    from snapkv_local.llama.reach import Reach
    from snapkv_local.llama.session import Snapshot

_NAME = "conversation-{}.snapkv"
_NONE = np.empty(0, np.int32)


@dataclass(eq=False)
class Rest:
    """A conversation that rests.

    Attributes:
        id: of the conversation, also while it has a sequence.
        reach: where it can be gone on from.
        snapshot: in memory; None if it is in a file only.
        path: of the file; None without.
        n_bytes: of it.
        figures: of its last answer, as Place has them; None if there was none.
        used: when it was used last.
    """

    id: str
    reach: Reach
    snapshot: Snapshot | None
    path: Path | None
    n_bytes: int
    figures: dict[str, Any] | None
    used: float = field(default_factory=time.monotonic)


class Resting:
    """Keeps conversations, those that were used last, within limits. All of it is called by one thread at
    a time.

    Args:
        max_ram: bytes in host memory.
        folder: of files for those that are beyond it; None drops them.
        max_disk: bytes of these files.
    """

    def __init__(self, max_ram: int, folder: Path | None = None, max_disk: int = 0) -> None:
        self.max_ram = max_ram
        self.folder = folder
        self.max_disk = max_disk
        self._all: dict[str, Rest] = {}

    def __iter__(self) -> Iterator[Rest]:
        return iter(list(self._all.values()))  # which others may read while it changes

    @property
    def keeps(self) -> bool:
        """Whether anything can rest."""
        return self.max_ram > 0 or self.folder is not None

    @property
    def bytes_ram(self) -> int:
        """In host memory."""
        return sum(rest.n_bytes for rest in self if rest.snapshot is not None)

    @property
    def bytes_disk(self) -> int:
        """In files."""
        return sum(rest.n_bytes for rest in self if rest.snapshot is None)

    def open(self) -> None:
        """Find the conversations that files of the folder hold, from servers before this one.

        Their content is checked when one is asked for. What cannot be read is left alone.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = sorted(self.folder.glob(_NAME.format("*")), key=lambda path: path.stat().st_mtime)
        for path in paths:
            with contextlib.suppress(SnapKVError, OSError, ValueError, KeyError, TypeError):
                self._note(path)
        self._fit_disk()

    def add(
        self,
        id_: str,
        reach: Reach,
        snapshot: Snapshot,
        figures: dict[str, Any] | None = None,
    ) -> None:
        """Let a conversation rest, in the place of what was known of it."""
        self.remove(id_, keep_file=self.folder is not None)
        path = None if self.folder is None else self.folder / _NAME.format(id_)
        self._all[id_] = Rest(id_, reach, snapshot, path, snapshot.n_bytes, figures)
        while self.bytes_ram > self.max_ram:
            in_ram = [rest for rest in self if rest.snapshot is not None]
            self._to_disk(min(in_ram, key=lambda rest: rest.used))

    def get(self, rest: Rest) -> Snapshot:
        """What is kept of one.

        Raises:
            DocumentError: its file is damaged, or gone.
        """
        from snapkv_local.llama import session

        if rest.snapshot is not None:
            return rest.snapshot
        assert rest.path is not None
        # when the conversation goes on, the file is removed
        return session.read(rest.path, mapped=mapped.REPLACEABLE)

    def remove(self, id_: str, keep_file: bool = False) -> None:
        """Forget one.

        Args:
            keep_file: its file stays until another one takes its place.
        """
        rest = self._all.pop(id_, None)
        if rest is not None and rest.path is not None and not keep_file:
            rest.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Write what is in memory to files, if there is a folder."""
        if self.folder is not None:
            for rest in [rest for rest in self if rest.snapshot is not None]:
                self._to_disk(rest)

    def _to_disk(self, rest: Rest) -> None:
        """Or away, where there is no folder, or no room."""
        assert rest.snapshot is not None
        if rest.path is None:
            self.remove(rest.id)
            return
        try:
            known = {"reach": rest.reach.header(), "figures": rest.figures}
            header = {**rest.snapshot.header, **known}
            rest.n_bytes = rest.snapshot.with_header(header).write(rest.path)
        except (SnapKVError, OSError) as e:
            logger.warning("a conversation is dropped: %s", e)
            self.remove(rest.id)
            return
        rest.snapshot = None
        self._fit_disk()

    def _fit_disk(self) -> None:
        while self.bytes_disk > self.max_disk:
            on_disk = [rest for rest in self if rest.snapshot is None]
            self.remove(min(on_disk, key=lambda rest: rest.used).id)

    def _note(self, path: Path) -> None:
        from snapkv_local.llama.reach import Reach
        from snapkv_local.llama.session import SESSION

        header, arrays, n_bytes = sealed.peek(path, SESSION, ("tokens", "vault"))
        reach = Reach.read(header["reach"], arrays["tokens"], arrays.get("vault", _NONE))
        id_ = path.stem.removeprefix("conversation-")
        self._all[id_] = Rest(id_, reach, None, path, n_bytes, header.get("figures"), used=-1.0)


def new_id() -> str:
    """Of a conversation."""
    return secrets.token_hex(8)
