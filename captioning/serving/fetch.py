"""An image at a URL that a stranger gave: its bytes, or a refusal. Reaches public hosts alone, in bounded time, memory and traffic."""

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field

import h11

from captioning.serving.addresses import is_public
from captioning.serving.urls import Forbidden, Target, read_url

MAX_BYTES = 10 * 2**20  # of the image
MAX_REDIRECTS = 3
MAX_HEADERS = 2**15  # bytes; h11 takes them apart in one go, which holds up the event loop for 50 ms at worst
MAX_FRAMING = 2**17  # bytes of one answer that are not content: headers, interim answers, sizes of chunks, trailers
MAX_ATTEMPTS = 4  # connections tried, of a name with more addresses
PIECE = 2**14  # bytes read at a time
WINDOW = 2**18  # bytes that the kernel takes ahead of us; left to itself it takes 6 MiB

MESSAGES = {
    "url_refused": "this URL is not allowed: only http and https, on ports 80 and 443 of public hosts, are",
    "url_failed": "the image could not be downloaded from this URL",
    "url_too_large": f"the file at this URL is too large: at most {MAX_BYTES // 2**20} MiB are downloaded",
    "url_timeout": "the download from this URL took too long",
    "url_not_image": "the file at this URL is no image of a known format (JPEG, PNG, WEBP, GIF, BMP, TIFF)",
}
SIGNATURES = {  # the formats of data/images.py by their first bytes
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
}
IMAGE, LONGEST = re.compile(b"|".join(SIGNATURES.values()), re.DOTALL), 12

LOOKUPS = ThreadPoolExecutor(32, "dns")  # of its own: lookups that hang must not take the threads that others wait for


class Refused(Exception):
    """What a client may be told: `code` is a key of MESSAGES, the text its message, the same for every reason behind it. The reason itself,
    where an error of the network is behind it, is chained as `__cause__`, for a log at most."""

    def __init__(self, code: str):
        super().__init__(MESSAGES[code])
        self.code = code


async def look_up(host: str) -> list[str]:
    """All addresses of a name, by the system's resolver. Raises OSError."""
    lookup = asyncio.get_running_loop().run_in_executor(LOOKUPS, lambda: socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    return [str(address[0]) for *_, address in await lookup]


async def connect_to(address: str, port: int) -> socket.socket:
    """A connection to this very address: nothing is looked up any more, and no proxy is asked. Raises OSError."""
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
        await asyncio.get_running_loop().sock_connect(connection, (address, port))
    except BaseException:
        connection.close()
        raise
    return connection


@dataclass(frozen=True)
class Fetcher:
    """Downloads the image at a URL: `await Fetcher()(url)`. Built once, for it reads the system's certificates; called many times at once.

    allowed_hosts: none means all; otherwise exact names, and `*.example.org` for all names below example.org (not itself). An allowed host
    must still have public addresses only: the list narrows the policy of addresses.py, nothing widens it.
    connect_seconds: for all of TCP and TLS. read_seconds: between two pieces. whole_seconds: for everything, names and redirects included.
    resolve, connect, tls: for tests alone, which have no names, no public addresses and no certificates.
    """

    allowed_hosts: Sequence[str] = ()
    _: KW_ONLY
    connect_seconds: float = 3.0
    read_seconds: float = 5.0
    whole_seconds: float = 10.0
    resolve: Callable[[str], Awaitable[list[str]]] = look_up
    connect: Callable[[str, int], Awaitable[socket.socket]] = connect_to
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    async def __call__(self, url: str) -> bytes:
        """The bytes of a whole file that begins like an image; whether it is one, who decodes it will see. Raises Refused."""
        try:
            async with asyncio.timeout(self.whole_seconds):
                return await self.download(url)
        except Forbidden as error:
            raise Refused("url_refused") from error
        except TimeoutError as error:
            raise Refused("url_timeout") from error
        except (OSError, h11.ProtocolError) as error:  # TLS's errors are OSErrors
            raise Refused("url_failed") from error

    async def download(self, url: str) -> bytes:
        target = read_url(url)
        for _ in range(1 + MAX_REDIRECTS):
            exchange = await self.open(target, await self.checked(target))
            try:
                response = await exchange.response(target)
                if response.status_code not in (301, 302, 303, 307, 308):
                    return await exchange.image(response)
            finally:
                exchange.close()
            target = target.joined(only(response, b"location"))
        raise h11.RemoteProtocolError("too many redirects")

    async def checked(self, target: Target) -> list[str]:
        """The addresses of an allowed host. They are asked for once: what is checked here is what is connected to."""
        if self.allowed_hosts and not target.is_among(tuple(self.allowed_hosts)):
            raise Forbidden("not among the allowed hosts")
        try:
            addresses = await self.resolve(target.host) if target.has_name else [target.host]
        except (OSError, UnicodeError) as error:  # to a client, a name without an address is as one with a forbidden address
            raise Forbidden(f"no address: {error}") from error
        if not addresses or not all(is_public(address) for address in addresses):
            raise Forbidden(f"not public: {addresses}")
        return list(dict.fromkeys(addresses))

    async def open(self, target: Target, addresses: Sequence[str]) -> "Exchange":
        """One address after the other, each with its share of the time that is left, so that a silent first leaves some to the next."""
        loop, tried = asyncio.get_running_loop(), addresses[:MAX_ATTEMPTS]
        end = loop.time() + self.connect_seconds
        tls, name = (self.tls, target.host) if target.scheme == "https" else (None, None)
        for left in range(len(tried), 0, -1):
            try:
                async with asyncio.timeout((end - loop.time()) / left):
                    connection = await self.connect(tried[-left], target.port)
                    streams = await asyncio.open_connection(sock=connection, ssl=tls, server_hostname=name, limit=PIECE)
                    return Exchange(*streams, self.read_seconds)
            except OSError:
                if left == 1:
                    raise
        raise AssertionError("no address")


class Exchange:
    """One request and its answer, on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float):
        self.reader, self.writer, self.seconds = reader, writer, seconds
        self.http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADERS)
        self.received = self.content = 0  # bytes

    def close(self) -> None:
        self.writer.transport.abort()  # at once: TLS's farewell would wait for the other side

    async def response(self, target: Target) -> h11.Response:
        """Asks, and reads the headers, past interim answers."""
        headers = [("Host", target.authority), ("User-Agent", "captioning"), ("Accept", "image/*"), ("Accept-Encoding", "identity")]
        request = h11.Request(method="GET", target=target.path, headers=[*headers, ("Connection", "close")])
        self.writer.write((self.http.send(request) or b"") + (self.http.send(h11.EndOfMessage()) or b""))
        while not isinstance(event := await self.event(), h11.Response):
            pass
        return event

    async def image(self, response: h11.Response) -> bytes:
        """The body, if it is whole, not encoded, not too large, and begins like an image: the rest of what does not is not read."""
        encodings = [value.lower() for name, value in response.headers if name == b"content-encoding"]
        if response.status_code != 200 or any(encoding != b"identity" for encoding in encodings):
            raise h11.RemoteProtocolError(f"status {response.status_code}, encodings {encodings}")
        if any(int(value) > MAX_BYTES for name, value in response.headers if name == b"content-length"):
            raise Refused("url_too_large")
        content = bytearray()
        while isinstance(event := await self.event(), h11.Data):
            content += event.data
            if len(content) >= LONGEST and not IMAGE.match(content):
                raise Refused("url_not_image")
            if len(content) > MAX_BYTES:
                raise Refused("url_too_large")
        if not IMAGE.match(content):
            raise Refused("url_not_image")
        return bytes(content)

    async def event(self) -> h11.Event:
        """The next part of the answer. h11 raises where the connection ends before the answer does."""
        await asyncio.sleep(0)  # what has arrived already comes without waiting, in thousands of chunks even: others want their turn
        while (event := self.http.next_event()) is h11.NEED_DATA:
            if self.received - self.content > MAX_FRAMING:
                raise h11.RemoteProtocolError("too much that is no content")
            async with asyncio.timeout(self.seconds):
                piece = await self.reader.read(PIECE)
            self.received += len(piece)
            self.http.receive_data(piece)
        if isinstance(event, h11.Data):
            self.content += len(event.data)
        assert isinstance(event, h11.Event)
        return event


def only(response: h11.Response, wanted: bytes) -> bytes:
    values = [value for name, value in response.headers if name == wanted]
    if len(values) != 1:
        raise h11.RemoteProtocolError(f"{len(values)} headers {wanted!r}")
    return values[0]
