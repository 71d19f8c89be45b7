"""Figures for Prometheus, in a registry of their own."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from snapkv_local.server.engine import Engine
from snapkv_local.server.guard import App, Receive, Send
from snapkv_local.server.worker import Worker

_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """What /metrics shows.

    Args:
        worker: whose queue is shown.
        engine: whose conversations are shown.
    """

    def __init__(self, worker: Worker, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "snapkv_requests", "Answered requests.", ["path", "status"], registry=self.registry
        )
        self.cancelled = Counter(
            "snapkv_cancelled", "Requests whose client went away.", registry=self.registry
        )
        self.tokens = Counter("snapkv_tokens", "Tokens.", ["kind"], registry=self.registry)
        self.seconds_prefill = Histogram(
            "snapkv_prefill_seconds",
            "From the start of a request's work to its first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.n_kept = Gauge(
            "snapkv_kept_tokens", "Rows for each KV head, last prompt.", registry=self.registry
        )
        self.bytes_kv = Gauge(
            "snapkv_kv_bytes",
            "KV cache of the last prompt, with room for new tokens.",
            registry=self.registry,
        )
        self.bytes_kv_full = Gauge(
            "snapkv_kv_full_bytes",
            "What the last prompt would take of a full cache.",
            registry=self.registry,
        )
        self.registry.register(_Conversations(worker, engine))
        for name, what, value in (
            ("snapkv_queue_length", "Requests that wait.", lambda: worker.n_waiting),
            ("snapkv_running", "Requests that run.", lambda: worker.n_running),
        ):
            Gauge(name, what, registry=self.registry).set_function(value)

    def count(self, usage: dict[str, Any]) -> None:
        """Add an answer's usage."""
        figures = usage["snapkv"]
        self.tokens.labels("prompt").inc(usage["prompt_tokens"])
        self.tokens.labels("cached").inc(figures["n_cached"])
        self.tokens.labels("completion").inc(usage["completion_tokens"])
        self.seconds_prefill.observe(figures["seconds_prefill"])
        self.n_kept.set(figures["n_kept"])
        self.bytes_kv.set(figures["bytes_kv"])
        self.bytes_kv_full.set(figures["bytes_kv_full"])

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)


class _Conversations(Collector):
    """What each conversation holds, and those that rest."""

    def __init__(self, worker: Worker, engine: Engine) -> None:
        self.worker = worker
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """The figures as they are."""
        if not self.worker.ready:
            return
        pool = self.engine.pool
        tokens = GaugeMetricFamily(
            "snapkv_conversation_tokens", "Tokens of each conversation.", labels=["slot"]
        )
        kept = GaugeMetricFamily(
            "snapkv_conversation_kept_tokens",
            "Rows for each KV head of each conversation's last prompt.",
            labels=["slot"],
        )
        for place in pool.places:
            tokens.add_metric([str(place.index)], len(place.reach.tokens))
            kept.add_metric([str(place.index)], (place.figures or {}).get("n_kept", 0))
        resting = GaugeMetricFamily(
            "snapkv_resting_bytes", "Conversations that rest, by where.", labels=["where"]
        )
        resting.add_metric(["ram"], pool.resting.bytes_ram)
        resting.add_metric(["disk"], pool.resting.bytes_disk)
        yield from (tokens, kept, resting)


class CountAnswers:
    """ASGI middleware that counts answers by path and status.

    Args:
        app: what answers.
        paths: that are counted by name; all others are one, as anybody can make them up.
        metrics: that are counted in.
    """

    def __init__(self, app: App, paths: frozenset[str], metrics: Metrics) -> None:
        self.app = app
        self.paths = paths
        self.metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)
