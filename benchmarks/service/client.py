"""A service in a process of its own, and clients that speak HTTP/1.1 over plain sockets: quick enough to measure, free to misbehave."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]


class Answer(NamedTuple):
    status: int  # 0: the connection ended without an answer
    body: bytes
    seconds: float  # from the first byte sent to the last received

    @property
    def code(self) -> str | None:
        return json.loads(self.body)["error"]["code"] if self.status >= 400 else None


class Server(NamedTuple):
    process: subprocess.Popen
    port: int
    log: Path

    def peak(self) -> float:
        """MiB of resident memory at most so far."""
        return self.status("VmHWM")

    def resident(self) -> float:
        return self.status("VmRSS")

    def status(self, name: str) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s*(\d+)", text)[1]) / 1024  # type: ignore[index]

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def get(self, path: str) -> Answer:
        return asyncio.run(ask(self.port, request("GET", path)))


@contextmanager
def serving(run: Path, folder: Path, *options: str) -> Iterator[Server]:
    """`captioning serve` on a free port, ready; ended by SIGTERM if it still runs."""
    log = folder / f"serve-{time.monotonic_ns()}.log"
    command = [sys.executable, "-m", "captioning.cli", "serve", "--run", str(run), "--port", "0", "--device", "cpu", *options]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stderr=output, stdout=output, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        yield Server(process, wait_until_ready(process, log), log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def wait_until_ready(process: subprocess.Popen, log: Path) -> int:
    port, end = None, time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        port = port or next((int(its[1]) for its in re.finditer(r"http://[^/]*:(\d+)/", log.read_text())), None)
        if port and asyncio.run(ask(port, request("GET", "/readyz"))).status == 200:
            return port
        time.sleep(0.1)
    raise RuntimeError(f"the service did not start: {log.read_text()[-2000:]}")


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def upload(picture: bytes, query: str = "") -> bytes:
    return request("POST", f"/describe{query}", picture, Content_Type="application/octet-stream")


async def ask(port: int, content: bytes, timeout: float = 60) -> Answer:
    """One request over a connection of its own."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                status, body = await exchange(reader, writer, content)
            finally:
                writer.close()
    except (OSError, TimeoutError, EOFError):
        status, body = 0, b""
    return Answer(status, body, time.monotonic() - began)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes) -> tuple[int, bytes]:
    """One request over an open connection."""
    sending = asyncio.ensure_future(send(writer, content))  # an answer may come before all is sent
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: *(\d+)", head.lower())[1])  # type: ignore[index]
        body = await reader.readexactly(length)
        await sending
    finally:
        sending.cancel()
    return int(head.split()[1]), body


async def send(writer: asyncio.StreamWriter, content: bytes) -> None:
    try:
        for place in range(0, len(content), 2**18):
            writer.write(content[place : place + 2**18])
            await writer.drain()
    except OSError:
        pass  # it was cut off: what was answered counts


class Line(asyncio.Protocol):
    """A connection that is kept: one request at a time, with as little work of the client's as can be."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.got, self.answer = transport, bytearray(), asyncio.get_running_loop().create_future()

    def ask(self, content: bytes) -> asyncio.Future:
        self.got, self.answer, self.began = bytearray(), asyncio.get_running_loop().create_future(), time.monotonic()
        self.transport.write(content)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, end, body = self.got.partition(b"\r\n\r\n")
        if end and len(body) >= int(re.search(rb"content-length: *(\d+)", head.lower())[1]) and not self.answer.done():  # type: ignore[index]
            self.answer.set_result(Answer(int(head.split(maxsplit=2)[1]), bytes(body), time.monotonic() - self.began))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(Answer(0, b"", 0.0))


async def line(port: int) -> Line:
    return (await asyncio.get_running_loop().create_connection(Line, "127.0.0.1", port))[1]


async def steadily(port: int, contents: list[bytes], clients: int, seconds: float) -> list[Answer]:
    """So many clients, each with one request after another."""
    end, answers = time.monotonic() + seconds, list[Answer]()

    async def client(number: int) -> None:
        its = await line(port)
        while time.monotonic() < end:
            number += 1
            answers.append(await its.ask(contents[number % len(contents)]))
        its.transport.close()

    await asyncio.gather(*(client(number * 7) for number in range(clients)))
    return answers


async def at_rate(port: int, contents: list[bytes], rate: float, seconds: float) -> list[Answer]:
    """So many requests a second, whether or not those before are answered."""
    free, waiting, answers, count, began = list[tuple[float, Line]](), set[Any](), list[Answer](), 0, time.monotonic()

    async def one(content: bytes) -> None:
        since, its = free.pop() if free else (0.0, None)
        if its is None or time.monotonic() - since > 5:  # soon it would be cut, being idle
            its = await line(port)
        answers.append(await its.ask(content))
        if answers[-1].status:
            free.append((time.monotonic(), its))

    while (now := time.monotonic() - began) < seconds:
        while count < now * rate:
            task = asyncio.create_task(one(contents[count % len(contents)]))
            waiting.add(task)
            task.add_done_callback(waiting.discard)
            count += 1
        await asyncio.sleep(0.002)
    if waiting:
        await asyncio.wait(waiting, timeout=60)
    return answers + [Answer(0, b"", 60.0)] * (count - len(answers))


async def at_once(port: int, contents: list[bytes]) -> list[Answer]:
    return list(await asyncio.gather(*(ask(port, content) for content in contents)))
