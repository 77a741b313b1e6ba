"""Around every request: its id, its line in the log, its part in the metrics, the headers that go with each answer. No image content."""

import json
import logging
import re
import time
import uuid
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from captioning.serving.problems import KINDS, Problem

logger = logging.getLogger("captioning.serve")
GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
GONE = 499  # nobody was there any more to be answered
PAGE = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'"
DOCS = "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
NEVER = "; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("captioning_requests", "Requests answered", ["path", "status", "code"], **kept)
        self.seconds = Histogram("captioning_request_seconds", "From a request's head to its answer", ["path"], buckets=SECONDS, **kept)
        self.pictures = Counter("captioning_pictures", "Pictures described", **kept)
        self.batches = Histogram("captioning_batch_pictures", "Pictures in a batch", buckets=(1, 2, 4, 8, 16, 32, 64), **kept)
        self.model_seconds = Histogram("captioning_batch_seconds", "The model's time for a batch", buckets=SECONDS, **kept)
        self.inside = Gauge("captioning_pictures_inside", "Pictures being read, waiting or being described", **kept)
        self.ready = Gauge("captioning_ready", "1 where /readyz is green", **kept)

        self.refused = {code: self.requests.labels("/describe", KINDS[code].status, code) for code in ("overloaded", "not_ready")}

    def batch(self, pictures: int, seconds: float) -> None:
        self.pictures.inc(pictures)
        self.batches.observe(pictures)
        self.model_seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Journal:
    """An ASGI application around another."""

    def __init__(self, app: Any, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        state = scope.setdefault("state", {})
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        state["request_id"] = given.decode() if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        status = GONE

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *self.headers(scope["path"], state["request_id"])]
            await send(message)

        fault = None
        try:
            await self.app(scope, receive, answer)
        except Exception as error:  # it was answered
            fault = error
        seconds = time.monotonic() - began
        path = getattr(scope.get("route"), "path", None) or "other"
        self.metrics.requests.labels(path, status, state.get("code", "")).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        if fault is not None or path not in ("/healthz", "/readyz", "/metrics"):
            line = {"id": state["request_id"], "method": scope["method"], "path": path, "status": status, "ms": round(1000 * seconds, 1)}
            more = {key: state[key] for key in ("code", "pictures") if key in state}
            logger.log(logging.ERROR if fault else logging.INFO, "request", extra={"fields": line | more}, exc_info=fault)

    def refused(self, problem: Problem) -> None:
        """Before it came here. It has no line in the log: what refuses thousands a second must not write thousands of lines."""
        self.metrics.refused[problem.code].inc()

    def headers(self, path: str, request_id: str) -> list[tuple[bytes, bytes]]:
        policy = (DOCS if path.startswith("/docs") else PAGE) + NEVER
        return [
            (b"x-request-id", request_id.encode()),
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-cache" if path == "/" or path.startswith("/page/") else b"no-store"),
        ]


class AsJson(logging.Formatter):
    """One line of JSON an entry."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower(), "event": record.getMessage()}
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)
