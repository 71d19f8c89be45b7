"""What a request must pass before a route sees it: Host, key, type and size of the body."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from snapkv_local.server.errors import ApiError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

PUBLIC = frozenset({"/", "/health", "/v1/health"})
PAGE = "/page/"  # where its files are, which anybody may have
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

# the page has no script, style or request of any other origin
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
# how long the rest of a refused body is read and dropped, so that its sender sees the refusal
_DRAIN_SECONDS = 5.0


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        api_keys: of which a request needs one; none for no key.
        max_body: bytes of a request.
        hosts: names that the Host header may have; None for any. On a loopback address this keeps
            web pages out that have let their own name resolve to it (DNS rebinding).
    """

    def __init__(
        self, app: App, api_keys: tuple[str, ...], max_body: int, hosts: frozenset[str] | None
    ) -> None:
        self.app = app
        self.api_keys = [key.encode() for key in api_keys]
        self.max_body = max_body
        self.hosts = hosts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        headers = dict(scope["headers"])
        try:
            self._check_host(headers)
            # a browser asks for permission without a key
            path = scope["path"]
            is_public = path in PUBLIC or path.startswith(PAGE)
            if scope["method"] != "OPTIONS" and not is_public:
                self._check_key(headers)
            self._check_type(scope["method"], headers)
            body = await self._read(headers, receive)
        except ApiError as e:
            await refuse(e, scope["path"], receive, send_with_headers)
            return
        if body is None:
            return

        async def replay() -> Message:
            if body:
                return body.pop()
            return await receive()

        await self.app(scope, replay, send_with_headers)

    def _check_host(self, headers: dict[bytes, bytes]) -> None:
        if self.hosts is None:
            return
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = host[1:].split("]")[0] if host.startswith("[") else host.rsplit(":", 1)[0]
        if name not in self.hosts:
            raise ApiError(
                403,
                "this server is not known by the name in the Host header; --allowed-host adds one",
                code="host_not_allowed",
            )

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        if not self.api_keys:
            return
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        given = [headers.get(b"x-api-key", b""), bearer if scheme.lower() == b"bearer" else b""]
        # all are compared, so that time tells nothing
        matches = [
            hmac.compare_digest(key.strip(), known) for key in given for known in self.api_keys
        ]
        if not any(matches):
            raise ApiError(
                401,
                "the API key is missing or wrong: send Authorization: Bearer KEY, or X-Api-Key: KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _check_type(self, method: str, headers: dict[bytes, bytes]) -> None:
        # other types can be sent by any web page without asking
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if method == "POST" and kind != b"application/json":
            raise ApiError(415, "send JSON, with Content-Type: application/json")

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> list[Message] | None:
        """The whole body as one message; None if the client has gone.

        Raises:
            ApiError: it is longer than allowed, by its header or by what has come.
        """
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_body:
            raise self._too_large()
        parts: list[bytes] = []
        n_bytes = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            n_bytes += len(parts[-1])
            if n_bytes > self.max_body:
                raise self._too_large()
            if not message.get("more_body", False):
                body = b"".join(parts)
                return [{"type": "http.request", "body": body, "more_body": False}]

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the request is longer than {self.max_body} bytes", code="request_too_large"
        )


async def refuse(error: ApiError, path: str, receive: Receive, send: Send) -> None:
    """Answer with an error before the body was read."""
    # ASCII, as a message may quote what is not Unicode
    body = json.dumps(error.body_for(path)).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    # a client that still sends when the connection closes would see a reset and not the answer
    ends = time.monotonic() + _DRAIN_SECONDS
    while time.monotonic() < ends:
        try:
            message = await asyncio.wait_for(receive(), max(ends - time.monotonic(), 0.01))
        except asyncio.TimeoutError:
            break
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            break
    await send({"type": "http.response.body", "body": b"", "more_body": False})
