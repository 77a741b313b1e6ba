"""Connections that may not wait for ever: uvicorn's HTTP/1.1, with a clock for what is slow to arrive and slow to be read."""

import json
import re
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from captioning.serving.problems import Problem
from captioning.serving.service import Service

PATIENCE = 10.0  # seconds, for the head of a request, for its body, between two requests, for an answer to be read
BYTES_A_SECOND, MORE_PATIENCE = 2**16, 50.0  # a body that comes so fast may take so much longer: a photograph over a poor line
HEAD_BYTES = 2**14  # a request's line and headers
CONNECTIONS = 1000
UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)  # to HTTP/2, say: as it is not offered, the parser does not hear of it


class Wire(HttpToolsProtocol):
    """Where there is no room, a picture is refused as soon as its head is there: what would cost a millisecond costs a twentieth of it, so
    that a flood of them does not take the time of those that were let in.

    refused: told of each.
    """

    awaited_since: float | None = None  # a request, or the rest of one
    unread_since: float | None = None  # an answer
    received = 0  # bytes, of what is awaited
    head_bytes = 0
    in_head = in_message = False
    is_ignored = False  # the message that is coming: it was answered from its head
    closes = False  # after it

    def __init__(self, service: Service, refused: Callable[[Problem], None], origins: frozenset[str], **given: Any):
        super().__init__(**given)
        self.service, self.refused, self.origins = service, refused, origins

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
        self.begin_waiting()

    # What arrives

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.in_head or not self.in_message:
            head, end, rest = data.partition(b"\r\n\r\n")
            data = UPGRADE.sub(b"\r\nX-Offer:", head) + end + rest
        super().data_received(data)
        if self.in_head and self.received > HEAD_BYTES:
            self.refuse_large_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.in_head = self.in_message = True
        self.head_bytes, self.is_ignored, self.closes = 0, False, False
        self.begin_waiting()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head_bytes += len(name) + len(value) + 4
        if self.in_head:
            super().on_header(name, value)
        elif self.head_bytes > HEAD_BYTES:  # behind a chunked body
            self.refuse_large_head()

    def on_headers_complete(self) -> None:
        self.in_head = False
        answers = self.cycle is None or self.cycle.response_complete  # else an answer to a request before this one must come first
        if self.head_bytes + len(self.url) > HEAD_BYTES and answers:
            self.is_ignored = True
            self.refuse_large_head()
        elif answers and self.is_picture() and (problem := self.service.refusal(1)):
            self.is_ignored = True
            self.closes = self.expect_100_continue or not self.parser.should_keep_alive()  # type: ignore[union-attr]
            self.refuse(problem)
            self.refused(problem)
            if self.expect_100_continue:  # its body will not come
                self.transport.close()
        else:
            super().on_headers_complete()

    def is_picture(self) -> bool:
        return self.url.partition(b"?")[0].endswith(b"/describe") and self.parser.get_method() == b"POST"  # type: ignore[union-attr]

    def on_body(self, body: bytes) -> None:
        if not self.is_ignored:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.in_message = False
        if not self.is_ignored:
            super().on_message_complete()
        if self.is_ignored and self.closes:
            self.transport.close()
        elif self.is_ignored or self.cycle.response_complete:
            self.begin_waiting()
        else:
            self.awaited_since = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not (self.in_message or self.transport.is_closing()):
            self.begin_waiting()

    # What it takes

    def begin_waiting(self) -> None:
        self.awaited_since, self.received = self.loop.time(), 0

    def look(self, now: float) -> None:
        """Several times a second: has it waited too long?"""
        if self.transport.is_closing() and self.unread_since is None:
            self.unread_since = now  # it waits until what it has written is read
        if self.unread_since is not None and now > self.unread_since + PATIENCE:
            self.transport.abort()
        if self.awaited_since is None or self.transport.is_closing():
            return
        in_body = self.in_message and not self.in_head
        if now > self.awaited_since + PATIENCE + (min(MORE_PATIENCE, self.received / BYTES_A_SECOND) if in_body else 0):
            if self.in_message and not self.is_ignored:
                self.refuse(Problem("request_timeout", "the request took too long to arrive"))
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.unread_since = None

    # What no application has seen is answered as it would be

    def send_400_response(self, msg: str) -> None:
        self.refuse(Problem("bad_request", msg))
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """One whose header came in pieces: what follows it can no longer be told apart."""
        self.send_400_response("upgrades are not offered")

    def refuse_large_head(self) -> None:
        self.refuse(Problem("head_too_large", f"the request's line and headers have more than {HEAD_BYTES:,} bytes"))
        self.transport.close()

    def refuse(self, problem: Problem) -> None:
        if self.transport.is_closing() or (self.cycle and self.cycle.response_started and not self.cycle.response_complete):
            return
        request_id = uuid.uuid4().hex
        body = json.dumps(problem.body(request_id)).encode()
        status = HTTPStatus(problem.status)
        head = [f"HTTP/1.1 {status} {status.phrase}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        head += [f"X-Request-ID: {request_id}"]
        head += [f"Retry-After: {problem.retry_after}"] if problem.retry_after else []
        head += ["Connection: close"] if self.closes or not problem.retry_after else []
        origin = next((value.decode("latin-1") for name, value in self.headers or [] if name == b"origin"), "")
        if origin in self.origins or (origin and "*" in self.origins):
            head += [f"Access-Control-Allow-Origin: {origin}", "Access-Control-Expose-Headers: X-Request-ID, Retry-After", "Vary: Origin"]
        self.transport.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)
