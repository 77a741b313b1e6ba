"""Connections that may not wait for ever: uvicorn's HTTP/1.1, with a clock for what is slow to arrive and slow to be read."""

import asyncio
import json
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from captioning.serving.problems import Problem

PATIENCE = 10.0  # seconds, for the head of a request, for its body, between two requests, for an answer to be read
BYTES_A_SECOND = 2**16  # a body that comes at this rate may take longer: a photograph over a poor line
CONNECTIONS = 1000


class Wire(H11Protocol):
    clock: asyncio.TimerHandle | None = None
    reading: asyncio.TimerHandle | None = None
    since = 0.0
    received = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self.look()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        super().data_received(data)
        self.look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self.look()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self.clock, self.reading):
            if timer is not None:
                timer.cancel()

    def look(self) -> None:
        """The clock runs, from one beginning, while a request or the rest of one is awaited."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            if self.clock is not None:
                self.clock.cancel()
                self.clock = None
        elif self.clock is None:
            self.since, self.received = self.loop.time(), 0
            self.clock = self.loop.call_later(PATIENCE, self.late)

    def late(self) -> None:
        self.clock = None
        allowed = PATIENCE + (self.received / BYTES_A_SECOND if self.conn.their_state is h11.SEND_BODY else 0)
        left = self.since + allowed - self.loop.time()
        if left > 0.01:
            self.clock = self.loop.call_later(left, self.late)
        elif not self.transport.is_closing():
            if self.received and not (self.cycle and self.conn.their_state is h11.SEND_BODY and self.cycle.response_started):
                self.refuse(Problem("request_timeout", "the request took too long to arrive"))
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self.refuse(Problem("bad_request", msg))
        self.transport.close()

    def refuse(self, problem: Problem) -> None:
        """What no application has seen is answered as it would be."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        request_id = uuid.uuid4().hex
        body = json.dumps(problem.body(request_id)).encode()
        phrase = {400: "Bad Request", 408: "Request Timeout"}[problem.status]
        head = f"HTTP/1.1 {problem.status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(f"{head}X-Request-ID: {request_id}\r\nConnection: close\r\n\r\n".encode() + body)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reading = self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.reading is not None:
            self.reading.cancel()
            self.reading = None
