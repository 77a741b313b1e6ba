"""Rows about what clients send: too slowly, too much, broken, or nothing at all."""

import asyncio
import json
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.pictures import BOMBS, damaged
from benchmarks.service.client import ask, request, serving, steadily, upload
from benchmarks.service.load import share

CUT = 10.0  # seconds


def slow(run: Path, pictures: list[bytes], folder: Path, clients: int = 200) -> Outcome:
    """Heads and bodies that drip, half of a request and then nothing, connections that say nothing, and some that were used and are kept:
    each must be cut, and others must not notice."""
    contents = [upload(its) for its in pictures]

    def polite(port: int) -> float:
        answers = asyncio.run(steadily(port, contents, 4, 7))
        return share([its.seconds for its in answers], 0.95) if all(its.status == 200 for its in answers) else float("inf")

    ratios, ends = [], list[float]()
    with serving(run, folder) as server, ProcessPoolExecutor(1) as others:  # slow, but not by taking the time of those who measure
        for _ in range(3):
            before = polite(server.port)
            slow_ones = others.submit(all_slow, server.port, contents[0], clients)
            time.sleep(0.7)
            ratios.append(polite(server.port) / before)
            ends += slow_ones.result()
    cut, ratio = sum(CUT - 1 < its < CUT + 2 for its in ends), sorted(ratios)[1]
    note = f"cut after {min(ends):.1f} to {max(ends):.1f} s; others' p95 {ratio:.2f} times what it was (of 3: {min(ratios):.2f} to "
    note += f"{max(ratios):.2f})"
    return Outcome(f"{clients} slow, silent and idle clients, 3 times", len(ends) + 1, cut + (ratio <= 1.25), note)


def all_slow(port: int, content: bytes, clients: int) -> list[float]:
    """Seconds until each was cut."""
    kinds = [drip_head, drip_body, half, silent, idle]

    async def together() -> list[float]:
        return list(await asyncio.gather(*(kinds[number % len(kinds)](port, content) for number in range(clients))))

    return asyncio.run(together())


async def until_cut(reader: asyncio.StreamReader) -> float:
    began = time.monotonic()
    try:
        while await asyncio.wait_for(reader.read(65536), 30):
            pass
    except (OSError, TimeoutError):
        pass
    return time.monotonic() - began


async def dripping(port: int, first: bytes, rest: bytes) -> float:
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    cut = asyncio.create_task(until_cut(reader))
    for byte in rest:
        if cut.done():
            break
        writer.write(bytes([byte]))
        await asyncio.wait([cut], timeout=0.5)
    await cut
    writer.close()
    return time.monotonic() - began


async def drip_head(port: int, content: bytes) -> float:
    return await dripping(port, content[:5], content[5:])


async def drip_body(port: int, content: bytes) -> float:
    place = content.index(b"\r\n\r\n") + 4
    return await dripping(port, content[:place], content[place:])


async def half(port: int, content: bytes) -> float:
    return await dripping(port, content[: len(content) // 2], b"")


async def silent(port: int, content: bytes) -> float:
    return await dripping(port, b"", b"")


async def idle(port: int, content: bytes) -> float:
    """After an answer."""
    return await dripping(port, request("GET", "/healthz"), b"")


def bodies(run: Path, pictures: list[bytes], folder: Path) -> Outcome:
    """Too large in every way: refused with the right status, and without the memory."""
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\nx\r\n'
    files = b"".join(part % (b"file", b'; filename="a.png"') for _ in range(1001)) + b"--b--\r\n"
    fields = b"".join(part % (b"f%d" % number, b"") for number in range(1001)) + b"--b--\r\n"
    large = part[:-5] % (b"file", b'; filename="a.png"') + bytes(11 * 2**20) + b"\r\n--b--\r\n"
    many: dict[str, Any] = {f"X_{number}": "y" for number in range(20_000)}
    form = {"Content_Type": "multipart/form-data; boundary=b"}
    chunk = b"10000\r\n" + bytes(2**16) + b"\r\n"
    unsized = b"POST /describe HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    cases = {
        "11 MiB": (upload(bytes(11 * 2**20)), {413}),
        "11 MiB in a form": (request("POST", "/describe", large, **form), {413}),
        "300 MB": (upload(bytes(300_000_000)), {413}),
        "40 MiB in chunks without a length": (unsized + chunk * 640 + b"0\r\n\r\n", {413}),
        "1,001 files": (request("POST", "/describe", files, **form), {413, 400}),
        "1,001 fields": (request("POST", "/describe", fields, **form), {413, 400}),
        "a header of 1 MB": (request("GET", "/healthz", X_Large="x" * 1_000_000), {400, 431}),
        "20,000 headers": (request("GET", "/healthz", **many), {400, 431}),
        "a path of 1 MB": (request("GET", "/" + "x" * 1_000_000), {400, 414, 431}),
    }  # fmt: skip
    passed, most, wrong = 0, 0.0, []
    with serving(run, folder) as server:
        asyncio.run(steadily(server.port, [upload(pictures[0])], 8, 2))  # what the first pictures take is not counted
        asyncio.run(ask(server.port, upload(bytes(9 * 2**20))))  # nor a body of the size that is allowed
        for name, (content, allowed) in cases.items():
            server.forget_peak()
            before = server.resident()
            answer = asyncio.run(ask(server.port, content))
            grown = server.peak() - before
            most = max(most, grown)
            good = answer.status in allowed and grown < 32
            passed += good
            wrong += [] if good else [f"{name}: {answer.status}, +{grown:.0f} MiB"]
        alive = server.get("/readyz").status == 200
    note = f"memory +{most:.0f} MiB at most{'' if alive else '; the service is gone'}{'; not: ' + '; '.join(wrong) if wrong else ''}"
    return Outcome("bodies and heads that are too large", len(cases), passed if alive else 0, note)


def broken(run: Path, pictures: list[bytes], folder: Path, truncations: int = 200, flips: int = 504) -> Outcome:
    """The pictures of the table of faults: each described, or refused with a code that says why; never a fault of the service's."""
    made = {name: content for name, content in damaged(20, truncations, flips).items() if isinstance(content, bytes)}
    made |= {f"bomb.{name}": content for name, content in BOMBS.items()}
    passed, slowest, wrong, refused = 0, 0.0, [], 0
    with serving(run, folder) as server:
        server.forget_peak()
        before = server.resident()
        for name, content in made.items():
            answer = asyncio.run(ask(server.port, upload(content)))
            slowest = max(slowest, answer.seconds)
            code = json.loads(answer.body or b"{}").get("error", {}).get("code")
            whole = answer.status == 200 and not name.startswith(("kind-", "bomb"))
            good = whole or (answer.status, code) in ((422, "image_unreadable"), (400, "bad_request"))
            passed += good
            refused += answer.status != 200
            wrong += [] if good else [f"{name} ({answer.status} {code})"]
        grown = server.peak() - before
        ready = server.get("/readyz").status == 200
    note = f"{refused} refused, {len(made) - refused} described; slowest {1000 * slowest:.0f} ms, memory +{grown:.0f} MiB"
    note += f"; not: {', '.join(wrong[:3])}" if wrong else ""
    return Outcome(f"{len(made) - len(BOMBS)} broken images and {len(BOMBS)} bombs", len(made), passed if ready else 0, note)
