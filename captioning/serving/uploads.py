"""The pictures in a request: a multipart form, an image as it is, or JSON with a URL. Bytes only; nothing is decoded here."""

import json
from collections.abc import AsyncIterator

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from captioning.serving.fetch import MAX_BYTES, Refused
from captioning.serving.problems import Problem
from captioning.serving.service import Download, Limits, Room

JSON_BYTES = 2**14


class InMemory(MultiPartParser):
    spool_max_size = 2**30  # a body is limited as a whole: nothing is written to a disk


async def pictures_in(request: Request, room: Room, limits: Limits, download: Download | None) -> list[bytes]:
    """Raises Problem, or ClientDisconnect where the client has left. room: what is taken is counted there."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    refuse_large(request, JSON_BYTES if kind == "application/json" else limits.bytes)
    if kind == "multipart/form-data":
        return await from_form(request, room, limits)
    if kind == "application/json":
        return [await from_url(await whole(request, room, JSON_BYTES), room, download)]
    if kind.startswith("image/") or kind == "application/octet-stream":
        content = await whole(request, room, limits.bytes)
        if not content:
            raise Problem("bad_request", "the body is empty; an image is needed")
        return [content]
    raise Problem(
        "unsupported_media_type",
        "Content-Type must be multipart/form-data with `file`, image/*, application/octet-stream, or application/json with `image_url`",
    )


def refuse_large(request: Request, most: int) -> None:
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or int(length[:20]) > most:
        raise too_large(most)


def too_large(most: int) -> Problem:
    return Problem("too_large", f"the body is larger than {most:,} bytes")


async def limited(request: Request, room: Room, most: int) -> AsyncIterator[bytes]:
    async for chunk in request.stream():
        room.take(len(chunk))
        if room.taken > most:
            raise too_large(most)
        yield chunk


async def whole(request: Request, room: Room, most: int) -> bytes:
    return b"".join([chunk async for chunk in limited(request, room, most)])


async def from_form(request: Request, room: Room, limits: Limits) -> list[bytes]:
    parser = InMemory(request.headers, limited(request, room, limits.bytes), max_files=limits.images, max_fields=limits.images)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many"):
            raise Problem("too_many_images", f"at most {limits.images} images in one request, and as many other parts") from None
        raise Problem("bad_request", f"not a multipart form: {error.message}") from None
    except (Problem, ClientDisconnect):
        raise
    except Exception:  # of its parser: whatever a form can be wrong in
        raise Problem("bad_request", "not a multipart form") from None
    try:
        pictures = [await part.read() for name, part in form.multi_items() if name == "file" and not isinstance(part, str)]
    finally:
        await form.close()
    if not pictures:
        raise Problem("bad_request", "the form has no file named `file`")
    return pictures


async def from_url(body: bytes, room: Room, download: Download | None) -> bytes:
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Problem("bad_request", "the body is not JSON") from None
    if not (isinstance(asked, dict) and set(asked) == {"image_url"} and isinstance(asked["image_url"], str)):
        raise Problem("bad_request", 'the body must be {"image_url": "https://..."}')
    if download is None:
        raise Problem("urls_off", "image_url is not allowed here; send the image itself")
    room.enter(1)
    room.take(MAX_BYTES)  # it may be so much
    try:
        return await download(asked["image_url"])
    except Refused as error:
        raise Problem(error.code, str(error)) from error
