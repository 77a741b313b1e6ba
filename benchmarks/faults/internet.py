"""A small internet on loopback: names, two public addresses, pages that behave or do not, and a trap behind every other address."""

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from captioning.serving.fetch import connect_to

PUBLIC, PUBLIC_6, SILENT = "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "93.184.215.15"
Send = Callable[[bytes], Awaitable[None]]
Page = Callable[[Send], Awaitable[None]]


class Internet:
    """`async with Internet(names, pages) as net`, and a Fetcher with `resolve=net.resolve, connect=net.connect`.

    names: for each what it stands for at its first lookup, at its second, and so on. The public addresses have the pages by their paths
    (with TLS on port 443 where `tls` is given), SILENT never answers, and any other address leads to the trap, which counts.
    """

    def __init__(self, names: Mapping[str, Sequence[Sequence[str]]], pages: Mapping[str, Page], tls: ssl.SSLContext | None = None):
        self.names, self.pages, self.tls = names, pages, tls
        self.lookups, self.sent = Counter[str](), Counter[str]()  # by name; bytes by path
        self.connections: list[tuple[str, int]] = []
        self.requests: list[str] = []
        self.trapped = self.trapped_bytes = self.open = 0
        self.servers: list[asyncio.Server] = []
        self.tasks: set[asyncio.Task] = set()

    async def __aenter__(self) -> "Internet":
        for handle, tls in ((self.answer, None), (self.answer, self.tls), (self.trap, None)):
            self.servers.append(await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls, limit=2**18))
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for server in self.servers:
            server.close()

    async def resolve(self, host: str) -> list[str]:
        self.lookups[host] += 1
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        answers = self.names[host]
        return list(answers[min(self.lookups[host], len(answers)) - 1])

    async def connect(self, address: str, port: int) -> socket.socket:
        self.connections.append((address, port))
        if address == SILENT:
            await asyncio.sleep(3600)
        plain, secure, trap = self.servers
        server = trap if address not in (PUBLIC, PUBLIC_6) else secure if port == 443 else plain
        return await connect_to("127.0.0.1", server.sockets[0].getsockname()[1])

    async def trap(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.trapped += 1
        self.trapped_bytes += len(await reader.read(2**16))
        writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        self.open += 1
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(head.decode())
            path = head.split()[1].decode()

            async def send(piece: bytes) -> None:
                writer.write(piece)
                await writer.drain()
                self.sent[path] += len(piece)

            await self.pages.get(path, absent)(send)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the other side has had enough, or the test has
        finally:
            self.open -= 1
            writer.close()


async def absent(send: Send) -> None:
    await send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
