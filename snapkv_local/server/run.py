"""From options to a running server."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import uvicorn

from snapkv_local.server.app import ServerOptions, make_app
from snapkv_local.server.engine import Engine, Load
from snapkv_local.server.worker import Worker

__all__ = ["Server", "ServerOptions"]

_GRACE_SECONDS = 10
# of service managers; on Windows of Ctrl-Break, of a console that is closed, and of a system that shuts down
_STOPS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGBREAK") if hasattr(signal, name))


class Server:
    """Engine, queue and HTTP server.

    Args:
        load: as for Engine; run on a thread of its own while the server already says "loading".
        model: its name in answers.
        max_tokens: of an answer, at most.
        max_queue: requests that may wait.
        sampling: as for Engine.
        options: what the HTTP server allows.
    """

    def __init__(
        self,
        load: Load,
        model: str,
        max_tokens: int | None,
        max_queue: int,
        sampling: Mapping[str, Any],
        options: ServerOptions,
    ) -> None:
        self.model = model
        self.failure: BaseException | None = None
        self.engine = Engine(load, model, max_tokens, sampling)
        self.worker = Worker(max_queue, self.engine.load, self._fail)
        app = make_app(self.engine, self.worker, options)
        config = uvicorn.Config(
            app,
            log_level="info",
            log_config=_LOG,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self.uvicorn = _Uvicorn(config, self.worker)

    def run(self, listener: socket.socket) -> None:
        """Serve until Ctrl-C, SIGTERM, SIGBREAK of Windows, or a failed load.

        Raises:
            KeyboardInterrupt: Ctrl-C.
            SnapKVError: from the load.
        """
        try:
            with _stopping_is_success():
                self.worker.start()
                self.uvicorn.run(sockets=[listener])
        finally:
            self.worker.stop()
            self.engine.close()
        if self.failure is not None:
            raise self.failure

    def _fail(self, error: BaseException) -> None:
        self.failure = error
        self.uvicorn.should_exit = True


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self.worker = worker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn waits for connections to end, so the jobs that keep them open end first."""
        self.worker.end_jobs()
        await super().shutdown(sockets)


@contextlib.contextmanager
def _stopping_is_success() -> Iterator[None]:
    """uvicorn raises a signal again once it is down: left to the system, it would end the process before
    conversations are written to files."""

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    previous = {number: signal.signal(number, leave) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_LOG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "stream": "ext://sys.stderr",
            "formatter": "plain",
        }
    },
    "loggers": {
        name: {"handlers": ["stderr"], "level": "INFO", "propagate": False}
        for name in ("uvicorn", "snapkv_local.server")
    },
}
