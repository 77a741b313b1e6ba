"""Connections that may not wait for ever: uvicorn's HTTP/1.1, with a clock for what is slow to arrive and slow to be read."""

import asyncio
import json
import re
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from captioning.serving.problems import Problem
from captioning.serving.service import Service

PATIENCE = 10.0  # seconds, for the head of a request, for its body, between two requests, for an answer to be read
BYTES_A_SECOND = 2**16  # a body that comes at this rate may take longer: a photograph over a poor line
CONNECTIONS = 1000
PICTURE = re.compile(rb"POST /describe[? ](?:(?!\r\n\r\n).)*?\r\ncontent-length: *(\d{1,9})\r\n(?:(?!\r\n\r\n).)*?\r\n\r\n", re.I | re.S)


class Wire(H11Protocol):
    """Where there is no room, a picture is refused before its request is parsed: what would cost a millisecond costs a twentieth of it,
    so that a flood of them does not take the time of those that were let in.

    refused: told of each.
    """

    clock: asyncio.TimerHandle | None = None
    reading: asyncio.TimerHandle | None = None
    since = 0.0
    received = 0
    unheard = 0  # bytes of a refused body that are still to come

    def __init__(self, service: Service, refused: Callable[[Problem], None], **given: Any):
        super().__init__(**given)
        self.service, self.refused = service, refused

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self.look()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        data = self.without_refused(data)
        if data:
            super().data_received(data)
            self.look()

    def without_refused(self, data: bytes) -> bytes:
        """What is to be heard of it."""
        while data:
            swallowed = min(self.unheard, len(data))
            self.unheard, data = self.unheard - swallowed, data[swallowed:]
            between = self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
            if not (data and between and (head := PICTURE.match(data)) and (problem := self.service.refusal(1))):
                break
            self.unheard = head.end() + int(head[1])
            self.refuse(problem)
            self.refused(problem)
            self.stop_clock()
            self.look()
        return data

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self.look()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.stop_clock()
        if self.reading is not None:
            self.reading.cancel()

    def look(self) -> None:
        """The clock runs, from one beginning, while a request or the rest of one is awaited."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.stop_clock()
        elif self.clock is None:
            self.since, self.received = self.loop.time(), 0
            self.clock = self.loop.call_later(PATIENCE, self.late)

    def stop_clock(self) -> None:
        if self.clock is not None:
            self.clock.cancel()
            self.clock = None

    def late(self) -> None:
        self.clock = None
        allowed = PATIENCE + (self.received / BYTES_A_SECOND if self.conn.their_state is h11.SEND_BODY else 0)
        left = self.since + allowed - self.loop.time()
        if left > 0.01:
            self.clock = self.loop.call_later(left, self.late)
        elif not self.transport.is_closing():
            if self.received and not self.unheard:
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
        status, after = HTTPStatus(problem.status), f"Retry-After: {problem.retry_after}" if problem.retry_after else "Connection: close"
        head = f"HTTP/1.1 {status} {status.phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.transport.write(f"{head}X-Request-ID: {request_id}\r\n{after}\r\n\r\n".encode() + body)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reading = self.loop.call_later(PATIENCE, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.reading is not None:
            self.reading.cancel()
            self.reading = None
