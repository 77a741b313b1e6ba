"""What of Gradio's server the demo lets in: what its page needs, and no file or address that a visitor names. Knows ASGI, not Gradio."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

API = "/gradio_api"
PAGE = {"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon"}
ASKED = {f"{API}/{name}" for name in ("info", "startup-events", "queue/data", "upload_progress")}
BELOW = ("/assets/", "/static/", f"{API}/heartbeat/", f"{API}/file=")
TOLD = {f"{API}/{name}" for name in ("queue/join", "upload", "cancel", "reset")}

MAX_UPLOAD = 10_000_000
MAX_QUESTION = 100_000  # bytes of a request that names an uploaded picture and settings
MAX_KEPT = 500_000_000  # all that lies in the folder of uploads
ROOM = 100_000_000  # of it, made free for what comes before the next look at the folder
BLOCK = 8192  # bytes that a file takes at least, with its folder
FRESH = 60  # seconds in which an upload is not removed: it may be read just now
PART = b"content-disposition"  # stands before each file of a form

HEADERS = {
    # the browser itself then asks no other host, whatever the page would like
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TooManyFiles(Exception):
    pass


class Gate:
    """Gradio fetches an address that stands where an upload should, streams any public address through `file=`, and has routes for
    much that this demo does not do. Here a request is answered only if the page needs it, and every path it names lies in `folder`.

    fits: is a question one that the page's functions take?"""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], folder: Path, fits: Callable[[Any], bool]):
        self.app, self.folder, self.fits = app, folder.resolve(), fits
        self.began, self.looked, self.kept, self.looking = time.time(), 0.0, 0, asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None
        path, length = scope["path"].removeprefix(scope.get("root_path", "")), length_of(scope)
        if problem := self.refusal(scope["method"], path, length):
            return await refuse(send, *problem)
        if path == f"{API}/queue/join":
            body = await whole(receive)
            if not self.may_ask(body):
                return await refuse(send, 403, "only pictures that were uploaded here are read")
            if not self.fits(json.loads(body)):
                return await refuse(send, 422, "not a question that the page asks")
            receive = again(body)
        if path == f"{API}/upload" and scope["method"] == "POST":
            if not await self.has_room(length or 0):
                return await refuse(send, 507, "too many pictures were uploaded in this minute: try again in the next")
            receive = of_one_file(receive)

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except TooManyFiles:
            await refuse(send, 413, "one picture at a time")

    async def has_room(self, length: int) -> bool:
        """Once a second at most the folder is looked at, and the oldest uploads make room; in between, what was let in is added."""
        async with self.looking:
            if time.monotonic() - self.looked > 1:
                self.kept = await asyncio.to_thread(tidied, self.folder, MAX_KEPT - ROOM, self.began)
                self.looked = time.monotonic()
            if self.kept + max(length, BLOCK) > MAX_KEPT:
                return False
            self.kept += max(length, BLOCK)
            return True

    def refusal(self, method: str, path: str, length: int | None) -> tuple[int, str] | None:
        if method in ("GET", "HEAD"):
            known = path in PAGE | ASKED or path.startswith(BELOW)
            named = path.removeprefix(f"{API}/file=")
            return None if known and (named == path or self.holds(named)) else (404, "not here")
        if method != "POST" or path not in TOLD:
            return 404, "not here"
        if length is None:
            return 411, "a Content-Length is needed"
        if path == f"{API}/upload":
            if length > MAX_UPLOAD + 10_000:  # the form around it
                return 413, f"at most {MAX_UPLOAD // 1_000_000} MB"
        elif length > MAX_QUESTION:
            return 413, f"at most {MAX_QUESTION} bytes"
        return None

    def may_ask(self, body: bytes) -> bool:
        try:
            return all(isinstance(named, str) and self.holds(named) for named in paths_in(json.loads(body)))
        except (ValueError, RecursionError):
            return False

    def holds(self, named: str) -> bool:
        """A file in the folder; what is an address is none."""
        try:
            path = Path(named)
            return path.is_absolute() and path.resolve().is_relative_to(self.folder) and path.is_file()
        except (OSError, ValueError):
            return False


def tidied(folder: Path, most: int, began: float) -> int:
    """-> The bytes that its files take, after the oldest were removed where it was more than `most`: none that was there when the demo
    began (the page shows them), and none of the last minute."""
    found = []
    for file in folder.rglob("*"):
        with suppress(OSError):  # Gradio removes and renames meanwhile
            about = file.lstat()
            if not file.is_dir():
                found.append((about.st_mtime, max(about.st_size, BLOCK), file))
    kept = sum(size for _, size, _ in found)
    for changed, size, file in sorted(found):
        if kept <= most or changed > time.time() - FRESH:
            break
        if changed > began:
            with suppress(OSError):
                file.unlink()
                kept -= size
                file.parent.rmdir()
    return kept


def paths_in(content: Any) -> Iterator[Any]:
    if isinstance(content, dict):
        if content.get("path") is not None:
            yield content["path"]
        content = list(content.values())
    for part in content if isinstance(content, list) else []:
        yield from paths_in(part)


def length_of(scope: Scope) -> int | None:
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else None


async def whole(receive: Receive) -> bytes:
    """Its length was announced, and the server holds a client to that."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


def of_one_file(receive: Receive) -> Receive:
    """A form of 10 MB holds 25,000 small files; the page sends one."""
    parts, tail = 0, b""

    async def counted() -> MutableMapping[str, Any]:
        nonlocal parts, tail
        message = await receive()
        seen = tail + message.get("body", b"").lower()
        parts, tail = parts + seen.count(PART), seen[-len(PART) + 1 :]
        if parts > 1:
            raise TooManyFiles
        return message

    return counted


def again(body: bytes) -> Receive:
    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def refuse(send: Send, status: int, sentence: str) -> None:
    text = json.dumps({"detail": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})
