"""URLs that mean harm, and servers that do, against the download of images: nothing forbidden is reached, nothing takes long or much."""

import asyncio
import gzip
import os
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.internet import PUBLIC, PUBLIC_6, SILENT, Internet, Page, Send
from benchmarks.faults.outcome import Outcome
from benchmarks.faults.urls import FORBIDDEN, SPELLINGS
from captioning.serving.fetch import MAX_BYTES, MESSAGES, Fetcher, Refused

SIZE, LARGE = 200_000, 200 * 10**6  # bytes
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * (SIZE // 256)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
SLACK = 0.5  # seconds after a limit, for a busy machine
AHEAD = 2**20  # bytes that two kernels and a TLS layer may hold between what a server has sent and what was received


class Case(NamedTuple):
    page: Page
    expected: str | bytes  # a code, or the content
    url: str = ""  # of what is asked for, where it is not the page: "none" for what others lead to
    is_work: bool = False  # for the processor: a busy one may come to the limit of time first


def host_of(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def says(*pieces: bytes, pause: float = 0) -> Page:
    async def page(send: Send) -> None:
        for piece in pieces:
            await send(piece)
            await asyncio.sleep(pause)

    return page


def repeats(head: bytes, piece: bytes, count: int, pause: float = 0) -> Page:
    async def page(send: Send) -> None:
        await send(head)
        for _ in range(count):
            await send(piece)
            await asyncio.sleep(pause)

    return page


def redirects(location: str) -> Page:
    return says(b"HTTP/1.1 302 Found\r\nLocation: " + location.encode() + b"\r\nContent-Length: 0\r\n\r\n")


def sized(content: bytes, length: int | None = None, more: bytes = b"") -> bytes:
    return OK + more + b"Content-Length: %d\r\n\r\n" % (len(content) if length is None else length) + content


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def ssrf(folder: Path) -> Outcome:
    """Each forbidden address as it is, as a name's answer (alone, first, last), as its second answer, behind a redirect; each odd spelling,
    as it is and behind a redirect. None may reach anything, and all must get one answer."""
    return asyncio.run(attacked())


async def attacked() -> Outcome:
    names: dict[str, list[list[str]]] = {"good.example": [[PUBLIC]], "127.0.0.1": [["127.0.0.1"]], "empty.example": [[]]}
    urls = ["http://nowhere.example/", "http://empty.example/", *SPELLINGS]
    for count, address in enumerate(FORBIDDEN):
        answers = {
            "alone": [[address]],
            "last": [[PUBLIC, PUBLIC_6, address]],
            "first": [[address, PUBLIC]],
            "later": [[PUBLIC], [address]],
        }
        names |= {f"{how}{count}.example": answer for how, answer in answers.items()}
        urls += [f"http://{host_of(address)}/", f"https://{host_of(address)}/"]
        urls += [f"http://{how}{count}.example/" for how in ("alone", "last", "first")]
    pages: dict[str, Page] = {f"/{count}": redirects(url) for count, url in enumerate(urls) if can_be_sent(url)}
    pages |= {f"/later{count}": redirects(f"http://later{count}.example/again") for count in range(len(FORBIDDEN))}
    urls += [f"http://good.example/{count}" for count in range(len(urls)) if f"/{count}" in pages]
    urls += [f"http://later{count}.example/later{count}" for count in range(len(FORBIDDEN))]
    wrong = []
    async with Internet(names, pages) as net:
        fetcher = Fetcher(resolve=net.resolve, connect=net.connect)
        for url in urls:
            try:
                answer = f"{len(await fetcher(url))} bytes"
            except Refused as error:
                answer = str(error)
            if answer != MESSAGES["url_refused"]:
                wrong.append(f"{url!r}: {answer}")
        reached = [place for place in net.connections if place != (PUBLIC, 80)]
        note = f"{net.trapped} connections and {net.trapped_bytes} bytes to forbidden addresses, {len(reached)} tried, "
        passed = len(urls) - len(wrong) if not net.trapped and not reached else 0
    note += "; ".join(wrong) or "one message"
    return Outcome("a URL that leads, or tries to lead, to a forbidden address, host, port or scheme", len(urls), passed, note)


def can_be_sent(url: str) -> bool:
    """What is a relative path to a redirect leads to good.example, and what breaks the header is another case."""
    return "://" in url.lstrip() and not any(character in url for character in "\r\n\0") and url == url.strip()


def cases(rest: float) -> dict[str, Case]:
    """rest: seconds between two bytes of a drip."""
    chunked, bomb = OK + b"Transfer-Encoding: chunked\r\n\r\n", gzip.compress(bytes(LARGE), 1)
    piece, html = JPEG[:65536], b"<html><body>no picture</body></html>" * 100
    chain = {f"chain{count}": Case(redirects(f"/chain{count + 1}"), "", "none") for count in range(1, 20)}
    return chain | {
        "stall": Case(says(b"", pause=3600), "url_timeout"),
        "stall-in-headers": Case(says(OK, pause=3600), "url_timeout"),
        "stall-in-body": Case(says(sized(piece, SIZE), pause=3600), "url_timeout"),
        "drip-of-headers": Case(repeats(OK, b"a", 10**6, rest), "url_timeout"),
        "drip-of-body": Case(repeats(sized(piece, SIZE), b"a", 10**6, rest), "url_timeout"),
        "drip-of-chunks": Case(repeats(chunked + chunk(piece), chunk(b"a"), 10**6, rest), "url_timeout"),
        "drip-of-interim-answers": Case(repeats(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 10**6, rest), "url_timeout"),
        "silent-address": Case(says(sized(JPEG)), "url_timeout", "http://silent.example/"),
        "large-with-length": Case(repeats(sized(piece, LARGE), piece, LARGE // 65536), "url_too_large"),
        "large-without-length": Case(repeats(OK + b"\r\n" + piece, piece, LARGE // 65536), "url_too_large"),
        "large-in-chunks": Case(repeats(chunked, chunk(piece), LARGE // 65536), "url_too_large"),
        "large-text": Case(repeats(OK + b"\r\n", b"a" * 65536, LARGE // 65536), "url_not_image"),
        "gzip-bomb": Case(says(sized(bomb, more=b"Content-Encoding: gzip\r\n")), "url_failed"),
        "gzip-bomb-in-transfer": Case(says(OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + chunk(bomb)), "url_failed"),
        "gzip-bomb-as-it-is": Case(says(sized(bomb)), "url_not_image"),
        "chunks-of-a-byte": Case(repeats(chunked + chunk(JPEG[:16]), chunk(b"a") * 10_000, 1000), "url_failed", is_work=True),
        "endless-extension-of-a-chunk": Case(repeats(chunked + b"5;", b"a" * 65536, 1000), "url_failed"),
        "endless-trailers": Case(repeats(chunked + chunk(JPEG) + b"0\r\n", b"a: b\r\n" * 1000, 10_000), "url_failed"),
        "endless-headers": Case(repeats(OK, b"a: b\r\n" * 1000, 10_000), "url_failed"),
        "endless-header": Case(repeats(OK + b"a: ", b"b" * 65536, 1000), "url_failed"),
        "endless-interim-answers": Case(repeats(b"", b"HTTP/1.1 100 \r\n\r\n" * 1000, 10_000), "url_failed", is_work=True),
        "chain0": Case(redirects("/chain1"), "url_failed"),
        "loop": Case(redirects("/loop"), "url_failed"),
        "redirect-to-nowhere": Case(says(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"), "url_failed"),
        "wrong-type": Case(says(OK.replace(b"image/jpeg", b"text/html") + b"\r\n" + html), "url_not_image"),
        "html-as-jpeg": Case(says(sized(html)), "url_not_image"),
        "truncated": Case(says(sized(JPEG, len(JPEG) + 1)), "url_failed"),
        "truncated-chunks": Case(says(chunked + chunk(JPEG)), "url_failed"),
        "two-lengths": Case(says(OK + b"Content-Length: 5\r\n" + sized(JPEG).removeprefix(OK)), "url_failed"),
        "no-http": Case(says(b"220 mail.example ESMTP\r\n\r\n"), "url_failed"),
        "not-found": Case(says(sized(JPEG).replace(b"200 OK", b"404 No")), "url_failed"),
        "empty": Case(says(sized(b"")), "url_not_image"),
        "closed-at-once": Case(says(), "url_failed"),
        "most-headers": Case(says(OK + b"a:\n" * 10_800 + sized(b"").removeprefix(OK)), "url_not_image"),
        "good": Case(says(sized(JPEG)), JPEG),
        "good-labelled-text": Case(says(sized(JPEG).replace(b"image/jpeg", b"text/html")), JPEG),
        "good-to-the-end": Case(says(OK + b"\r\n" + JPEG), JPEG),
        "good-in-chunks": Case(says(chunked, *[chunk(JPEG[at : at + 999]) for at in range(0, len(JPEG), 999)], b"0\r\n\r\n"), JPEG),
        "good-in-drops": Case(says(*[sized(JPEG[:100])[at : at + 1] for at in range(200)]), JPEG[:100]),
        "good-of-the-largest-size": Case(says(sized(JPEG + bytes(MAX_BYTES - len(JPEG)))), JPEG + bytes(MAX_BYTES - len(JPEG))),
        "one-redirect-too-many": Case(redirects("//good.example/good-after-one"), "url_failed"),
        "good-after-one": Case(redirects("good-after-two"), JPEG),
        "good-after-two": Case(redirects("/good-after-three"), JPEG),
        "good-after-three": Case(redirects("http://good.example:80/good#top"), JPEG),
    }  # fmt: skip


class Watch:
    """How long the event loop did not come round, and how much more memory the process had, at worst."""

    def __init__(self) -> None:
        self.pause, self.before, self.most = 0.0, resident(), 0

    async def __call__(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await asyncio.sleep(0.005)
            finally:
                self.pause = max(self.pause, time.monotonic() - began - 0.005)
                self.most = max(self.most, resident() - self.before)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fetches(folder: Path, scale: float = 1.0) -> Outcome:
    """Servers that stall, drip, flood, bomb, lie and run in circles, and some that do not: all at once, on one event loop.

    scale: of the limits of time, which are the real ones at 1."""
    return asyncio.run(served(scale))


async def served(scale: float) -> Outcome:
    everything = cases(rest=0.25 * scale)
    asked = {name: case for name, case in everything.items() if case.url != "none"}
    pages = {f"/{name}": case.page for name, case in everything.items()}
    names = {"good.example": [[PUBLIC]], "silent.example": [[SILENT]]}
    watch, wrong, slowest = Watch(), [], 0.0
    async with Internet(names, pages) as net:
        real = Fetcher(resolve=net.resolve, connect=net.connect)
        limits = [seconds * scale for seconds in (real.connect_seconds, real.read_seconds, real.whole_seconds)]
        fetcher = Fetcher(
            (), connect_seconds=limits[0], read_seconds=limits[1], whole_seconds=limits[2], resolve=net.resolve, connect=net.connect
        )
        watching = asyncio.create_task(watch())
        answers = await asyncio.gather(*(timed(fetcher, case.url or f"http://good.example/{name}") for name, case in asked.items()))
        watching.cancel()
        most = max(net.sent.values())
    for (name, case), (answer, seconds) in zip(asked.items(), answers):
        slowest = max(slowest, seconds)
        is_right = answer == case.expected or (case.is_work and answer == "url_timeout")
        if not is_right or seconds > limits[2] + SLACK or net.sent[f"/{name}"] > MAX_BYTES + AHEAD:
            wrong.append(f"{name}: {answer if isinstance(answer, str) else f'{len(answer)} bytes'} after {seconds:.1f} s")
    note = (
        f"slowest {slowest:.1f} s; at most {most / 2**20:.1f} MiB sent to one, {watch.most / 2**20:.0f} MiB more memory for all at once; "
    )
    note += f"the event loop's longest pause {watch.pause * 1000:.0f} ms"
    return Outcome("a server that stalls, drips, floods or lies", len(asked), len(asked) - len(wrong), "; ".join([*wrong, note]))


async def timed(fetcher: Fetcher, url: str) -> tuple[str | bytes, float]:
    began = time.monotonic()
    try:
        answer: str | bytes = await fetcher(url)
    except Refused as error:
        answer = error.code
    return answer, time.monotonic() - began
