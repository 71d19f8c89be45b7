"""Replicas of snapkv-local's server behind Ray Serve.

serve run app:build model=MODEL documents=FOLDER replicas=2
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from routing import affinity, continued, heard, ranked

from snapkv_local import Llama, SnapKVConfig
from snapkv_local.models.resolve import resolve
from snapkv_local.server.app import ServerOptions, make_app
from snapkv_local.server.engine import Engine
from snapkv_local.server.worker import Worker

# requests that a replica has at a time; with more, the next one in the order takes them
MOST_AT_ONCE = 4
# times that a request may lose its replica
MOST_DEATHS = 5
REPLICA = b"x-replica"


class ByPrefix(RequestRouter):
    """Sends what has a document or a conversation in common to the same replica."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        # if all of them are busy, wait a little before the next look
        pending_request.routing_context.should_backoff = True
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_id[id_]] for id_ in ranked(pending_request.kwargs["key"], by_id)]


@serve.deployment(
    max_ongoing_requests=MOST_AT_ONCE,
    health_check_period_s=1,
    request_router_config=RequestRouterConfig(request_router_class=ByPrefix),
)
class Replica:
    """One model, and the application of snapkv-local's server, which is called in this process.

    Args:
        model: a GGUF file, `demo`, `needle`, or hf:owner/repo.
        documents: a folder with documents that `snapkv-local ingest` made for this model; each replica
            maps them, so replicas of a machine share their memory.
        ctx: tokens of a conversation.
        budget: rows that each KV head keeps of a prompt.
        threads: of the CPU.
    """

    def __init__(self, model: str, documents: str, ctx: int, budget: int, threads: int) -> None:
        path = resolve(model)

        def load() -> tuple[Llama, dict[str, Any]]:
            llm = Llama(
                str(path),
                n_ctx=ctx,
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=-1,
                snapkv=SnapKVConfig(budget=budget, vault="ram"),
                verbose=False,
            )
            files = sorted(Path(documents).glob("*.snapkv")) if documents else []
            return llm, {file.stem: llm.open_document(file) for file in files}

        self.failure: BaseException | None = None
        engine = Engine(load, path.stem, max_tokens=None)
        self.worker = Worker(MOST_AT_ONCE, engine.load, self._fail)
        self.app = make_app(engine, self.worker, ServerOptions())
        self.worker.start()

    def _fail(self, error: BaseException) -> None:
        self.failure = error

    async def check_health(self) -> None:
        """Ray starts another replica in the place of one that raises here."""
        if self.failure is not None:
            raise self.failure

    async def ask(
        self, method: str, path: str, query: bytes, headers: list[Any], body: bytes, key: str
    ) -> AsyncIterator[Any]:
        """The response of the application: status and headers, then the body's pieces."""
        while not self.worker.ready and self.failure is None:
            await asyncio.sleep(0.05)
        await self.check_health()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query,
            "headers": headers,
            "client": None,
            "server": None,
        }
        sent, given, has_left = asyncio.Queue(), asyncio.Event(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not given.is_set():
                given.set()
                return {"type": "http.request", "body": body}
            await has_left.wait()
            return {"type": "http.disconnect"}

        call = asyncio.create_task(self.app(scope, receive, sent.put))
        call.add_done_callback(lambda _: sent.put_nowait({"type": "end"}))
        try:
            while (message := await sent.get())["type"] != "end":
                if message["type"] == "http.response.start":
                    own = (REPLICA, str(os.getpid()).encode())
                    yield message["status"], [*message["headers"], own]
                elif message.get("body"):
                    yield message["body"]
            await call
        finally:  # Ray closes this if the client has left
            has_left.set()


_LOST = (
    b"data: "
    + json.dumps(
        {
            "error": {
                "message": "the replica ended within the answer, which cannot go on: ask again",
                "type": "server_error",
                "param": None,
                "code": "replica_lost",
            }
        }
    ).encode()
    + b"\n\n"
)


def read(event: bytes) -> dict[str, Any] | None:
    """The chunk of an answer; None for other events, such as comments."""
    if not event.startswith(b"data: {"):
        return None
    chunk = json.loads(event[6:])
    return chunk if chunk.get("choices") else None


def is_first(chunk: dict[str, Any]) -> bool:
    """Whether it is the chunk that says whose answer begins."""
    return "role" in (chunk["choices"][0].get("delta") or {})


class Asked:
    """One request of a client's, by as many replicas as it takes."""

    def __init__(self, replicas: DeploymentHandle, request: Request, body: bytes) -> None:
        self.replicas, self.method, self.path = replicas, request.method, request.url.path
        self.query = request.scope["query_string"]
        self.sent_headers = [
            (name, value) for name, value in request.headers.raw if name != b"content-length"
        ]
        self.body = body
        try:
            given = json.loads(body)
        except ValueError:  # the application has words for it
            given = None
        self.json: dict[str, Any] = given if isinstance(given, dict) else {}
        self.key = affinity(self.path, self.json)
        self.deaths = 0
        self.status, self.headers = 0, []

    async def begin(self) -> tuple[int, list[Any]]:
        """Ask; status and headers."""
        while True:
            self.pieces = self.replicas.remote(
                self.method, self.path, self.query, self.sent_headers, self.body, key=self.key
            )
            try:
                self.status, self.headers = await anext(self.pieces)
                return self.status, self.headers
            except RayActorError as e:
                self._count(e)

    async def whole(self) -> bytes:
        """The body, all of it from one replica."""
        while True:
            try:
                return b"".join([piece async for piece in self.pieces])
            except RayActorError as e:
                self._count(e)
                await self.begin()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events; another replica goes on where one has died."""
        said: str | None = ""
        chunks, id_, has_ended = 0, None, False
        while True:
            rest = b""
            try:
                async for piece in self.pieces:
                    *events, rest = (rest + piece).split(b"\n\n")
                    for event in events:
                        chunk = read(event)
                        if chunk is not None:
                            text = heard(chunk)
                            if chunks and not text and is_first(chunk):
                                continue  # the client has it from the replica that died
                            id_ = chunk["id"] = id_ or chunk.get("id")
                            event = b"data: " + json.dumps(chunk).encode()
                            said = None if said is None or text is None else said + text
                            chunks += bool(text)
                            has_ended = has_ended or bool(chunk["choices"][0].get("finish_reason"))
                        elif not event.startswith(b":"):
                            said = None  # of another API than that of chats
                        yield event + b"\n\n"
                return
            except RayActorError as e:
                self._count(e)
            if has_ended:
                yield b"data: [DONE]\n\n"
                return
            goes_on = continued(self.json, said, chunks)
            if goes_on is None:
                yield _LOST
                return
            self.body = json.dumps(goes_on).encode()
            await self.begin()

    def _count(self, error: RayActorError) -> None:
        self.deaths += 1
        if self.deaths > MOST_DEATHS:
            raise error


# Ray pickles the routes as they are decorated, with what is defined until then
api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)


# it waits for replicas and computes nothing, so it takes no processor of its own
@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Front:
    """Takes all requests, hands each to a replica, and to another one if that one dies."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self.replicas = replicas.options(stream=True, method_name="ask")

    @api.api_route("/{path:path}", methods=["GET", "HEAD", "POST"])
    async def forward(self, request: Request) -> Response:
        asked = Asked(self.replicas, request, await request.body())
        status, headers = await asked.begin()
        if any(value.startswith(b"text/event-stream") for _, value in headers):
            response = StreamingResponse(asked.events(), status)
        else:
            response = Response(await asked.whole(), asked.status)
            headers = asked.headers
        response.raw_headers = headers
        return response


def build(args: dict[str, str]) -> serve.Application:
    """For `serve run app:build NAME=VALUE ...`; README.md has the names."""
    replica = Replica.options(
        num_replicas=int(args.get("replicas", 2)),
        ray_actor_options={
            "num_cpus": int(args.get("threads", 1)),
            "num_gpus": float(args.get("gpus", 0)),
        },
    ).bind(
        args["model"],
        args.get("documents", ""),
        int(args.get("ctx", 8192)),
        int(args.get("budget", 1024)),
        int(args.get("threads", 1)),
    )
    return Front.bind(replica)
