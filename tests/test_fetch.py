"""The download of a stranger's URL: what may be reached, and what a server can do to it."""

import asyncio
import io
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.faults import fetching
from benchmarks.faults.fetching import JPEG, redirects, repeats, says, sized
from benchmarks.faults.internet import PUBLIC, PUBLIC_6, SILENT, Internet
from benchmarks.faults.urls import FORBIDDEN, SPELLINGS
from captioning.data.images import FORMATS
from captioning.serving.addresses import is_public
from captioning.serving.fetch import IMAGE, MAX_BYTES, MESSAGES, SIGNATURES, Fetcher, Refused, connect_to, look_up
from captioning.serving.urls import Forbidden, Target, read_url

NAMES = {"good.example": [[PUBLIC]], "other.example": [[PUBLIC]]}


def download(*urls, names=NAMES, pages=None, server=None, **settings):
    """What came of each URL, content or the code of a refusal, and the internet afterwards."""

    async def ask():
        async with Internet(NAMES | names, {"/good": says(sized(JPEG)), **(pages or {})}, server) as net:
            fetcher = Fetcher(**{"resolve": net.resolve, "connect": net.connect, **settings})
            return [(await fetching.timed(fetcher, url))[0] for url in urls], net

    answers, net = asyncio.run(asyncio.wait_for(ask(), 30))
    return *answers, net


def test_no_forbidden_address_is_reached_in_any_spelling_and_all_refusals_are_alike(tmp_path):
    outcome = fetching.ssrf(tmp_path)
    assert outcome.count > 700 and outcome.passed == outcome.count, outcome.note


def test_no_server_takes_longer_or_sends_more_than_it_may(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "SLACK", 6 * fetching.SLACK)  # others may want this core
    outcome = fetching.fetches(tmp_path, scale=0.3)
    assert outcome.count == 44 and outcome.passed == outcome.count, outcome.note


@pytest.mark.parametrize("edges", [  # the last that may be, the first and the last that may not, the first that may again
    "1.0.0.0 0.0.0.0 0.255.255.255 1.0.0.0", "9.255.255.255 10.0.0.0 10.255.255.255 11.0.0.0",
    "100.63.255.255 100.64.0.0 100.127.255.255 100.128.0.0", "126.255.255.255 127.0.0.0 127.255.255.255 128.0.0.0",
    "169.253.255.255 169.254.0.0 169.254.255.255 169.255.0.0", "172.15.255.255 172.16.0.0 172.31.255.255 172.32.0.0",
    "191.255.255.255 192.0.0.0 192.0.0.255 192.0.1.0", "192.0.1.255 192.0.2.0 192.0.2.255 192.0.3.0",
    "192.88.98.255 192.88.99.0 192.88.99.255 192.88.100.0", "192.167.255.255 192.168.0.0 192.168.255.255 192.169.0.0",
    "198.17.255.255 198.18.0.0 198.19.255.255 198.20.0.0", "198.51.99.255 198.51.100.0 198.51.100.255 198.51.101.0",
    "203.0.112.255 203.0.113.0 203.0.113.255 203.0.114.0", "223.255.255.255 224.0.0.0 255.255.255.255 8.8.8.8",
    "168.63.129.15 168.63.129.16 168.63.129.16 168.63.129.17", "2001:200:: :: 1fff:ffff:: 2400::",
    "2001:200:: 2001:: 2001:1ff:ffff:: 2001:200::", "2001:db7:ffff:: 2001:db8:: 2001:db8:ffff:: 2001:db9::",
    "2001:ffff:: 2002:: 2002:ffff:: 2003::", "3ffd:: 3ffe:: 3ffe:ffff:: 3fff:1000::", "3ffd:: 3fff:: 3fff:fff:ffff:: 3fff:1000::",
    "3fff:ffff:: 4000:: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 2606:4700::1111",
])  # fmt: skip
def test_each_forbidden_network_is_forbidden_from_its_first_address_to_its_last(edges):
    before, first, last, after = edges.split()
    assert [is_public(address) for address in (before, first, last, after)] == [True, False, False, True]


def test_an_address_with_a_zone_is_not_public():
    assert is_public(PUBLIC_6) and not is_public(f"{PUBLIC_6}%eth0")


@given(st.one_of(st.ip_addresses(), st.sampled_from(FORBIDDEN).map(ipaddress.ip_address)))
def test_what_python_takes_for_not_global_is_never_public(address):
    assert address.is_global or not is_public(str(address))
    assert not is_public(f"{address}%eth0") and not is_public(f" {address}") and not is_public(f"::ffff:{address}")


PARTS = [*"http:/@#?[]%.\\ \t\n\r\0x0127aé。１-_", "https://", "http://", "good.example", "127.0.0.1", "[::1]", ":80"]
ODD = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


@given(st.one_of(st.text(), ODD, ODD.map("http://{}".format), ODD.map("http://good.example{}".format)))
def test_a_url_is_read_in_one_plain_spelling_or_forbidden(url):
    try:
        target = read_url(url)
    except Forbidden:
        return
    assert target.port in (80, 443) and target.scheme in ("http", "https") and target.path.startswith("/")
    assert target.path.isascii() and target.path.isprintable() and not set(target.path) & set(" \\#")
    if target.has_name:
        assert set(target.host) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") and "." in target.host.strip(".") == target.host
    else:
        assert str(ipaddress.ip_address(target.host)) == target.host
    assert read_url(f"{target.scheme}://{target.authority}{target.path}") == target


def test_plain_urls_are_read_as_they_are_meant():
    assert read_url("HTTP://Good.Example") == Target("http", "good.example", 80, "/")
    assert read_url("https://good.example:443?a=b/c#d@e") == Target("https", "good.example", 443, "/?a=b/c")
    assert read_url("http://xn--bcher-kva.example:443/a%20b;c") == Target("http", "xn--bcher-kva.example", 443, "/a%20b;c")
    assert read_url("http://[2606:2800:021F::0001]/").authority == "[2606:2800:21f::1]"
    assert read_url("https://8.8.8.8:80/").authority == "8.8.8.8:80"
    assert len(read_url("http://good.example/" + "a" * 2028).path) == 2029


def test_where_a_redirect_leads_is_read_as_strictly():
    base = Target("https", "good.example", 443, "/a/b?c")
    leads = {"d": "/a/d", "/d": "/d", "?d": "/a/b?d", "../../../d": "/d", "https://good.example/d": "/d", "//good.example:443/d#e": "/d"}
    assert {location: base.joined(location.encode()).path for location in leads} == leads
    for location in (
        b"",
        b"/a b",
        b"/\xc3\xa9",
        b"///d",
        b"/\\d",
        b"http:d",
        b"https:///d",
        b"https:/d",
        b"mailto:d",
        b"http://good.example/d",
        b"//[::1",
    ):
        with pytest.raises(Forbidden):
            base.joined(location)


def test_the_request_says_what_it_must_and_no_more():
    content, net = download("http://Good.Example:80/good?")
    assert content == "url_failed"  # there is no page of this very name
    headers = "Host: good.example", "User-Agent: captioning", "Accept: image/*", "Accept-Encoding: identity", "Connection: close"
    assert net.requests == ["\r\n".join(["GET /good? HTTP/1.1", *headers, "", ""])]


def test_a_name_is_looked_up_once_and_the_checked_address_is_the_one_connected_to():
    content, net = download("http://rebound.example/good", names={"rebound.example": [[PUBLIC_6], ["127.0.0.1"]]})
    assert content == JPEG and net.connections == [(PUBLIC_6, 80)] and net.lookups == {"rebound.example": 1}


def test_what_is_refused_by_its_spelling_is_not_even_looked_up():
    *codes, net = download(*SPELLINGS)
    assert set(codes) == {"url_refused"} and not net.lookups and not net.connections


def test_three_redirects_are_followed_and_a_fourth_is_not():
    pages = {f"/{count}": redirects(f"/{count + 1}") for count in range(4)} | {"/4": says(sized(JPEG))}
    three, four, net = download("http://good.example/1", "http://good.example/0", pages=pages)
    assert (three, four) == (JPEG, "url_failed") and len(net.requests) == 8 and net.lookups["good.example"] == 8


def test_only_allowed_hosts_are_asked_at_every_hop_and_only_at_public_addresses():
    names = {name: [[PUBLIC]] for name in ("a.b.example", "b.example", "evil-b.example", "exact.example", "a.exact.example")}
    names["private.b.example"] = [["10.0.0.1"]]
    pages = {"/out": redirects("http://good.example/good"), "/in": redirects("http://a.b.example/good")}
    good = ["http://a.b.example/good", "http://EXACT.example/good", "http://exact.example/in"]
    bad = [
        f"http://{host}/good" for host in ("b.example", "evil-b.example", "a.exact.example", "good.example", "private.b.example", PUBLIC)
    ]
    *answers, net = download(
        *good, *bad, "http://exact.example/out", names=names, pages=pages, allowed_hosts=["*.B.example", "exact.example"]
    )
    assert answers == [JPEG] * 3 + ["url_refused"] * 7 and net.trapped == 0
    assert not net.lookups.keys() & {"b.example", "evil-b.example", "a.exact.example", "good.example"}


def test_proxies_of_the_environment_are_not_asked(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        content, net = download("http://good.example/good")
        assert content == JPEG and net.connections == [(PUBLIC, 80)]
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_read_is_known_by_its_first_bytes(kind):
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, kind)
    content, _ = download("http://good.example/image", pages={"/image": says(sized(file.getvalue()))})
    assert content == file.getvalue() and set(SIGNATURES) == set(FORMATS)


def test_other_files_are_no_images():
    for content in (
        b"",
        b"\xff",
        b"<svg",
        b"RIFF1234WAVE",
        b"GIF88a",
        b"%PDF-1.7",
        b"%!PS-Adobe",
        b" \xff\xd8\xff",
        b"\0\0\0\x0cjP  \r\n\x87\n",
    ):
        assert not IMAGE.match(content)


def test_the_most_that_is_taken_is_taken_and_a_byte_more_is_not():
    most = JPEG + bytes(MAX_BYTES - len(JPEG))
    pages = {
        "/most": says(sized(most)),
        "/more": says(fetching.OK + b"\r\n", most + b"1"),
        "/said": says(sized(JPEG, MAX_BYTES + 1), pause=60),
    }
    *answers, _ = download(*(f"http://good.example{path}" for path in pages), pages=pages)
    assert answers == [most, "url_too_large", "url_too_large"]


def test_encoded_content_is_refused_unread():
    pages = {
        f"/{name}": says(sized(JPEG, more=b"Content-Encoding: %b\r\n" % name.encode()))
        for name in ("gzip", "br", "identity", "identity,gzip")
    }
    *answers, _ = download(*(f"http://good.example{path}" for path in pages), pages=pages)
    assert answers == ["url_failed", "url_failed", JPEG, "url_failed"]


def test_all_failures_of_a_public_host_have_one_message():
    async def closed(address, port):
        raise ConnectionRefusedError

    pages = {"/junk": says(b"SSH-2.0-OpenSSH_9.9\r\n"), "/moved": redirects("/moved")}
    *answers, _ = download(*(f"http://good.example/{page}" for page in ("absent", "junk", "moved")), pages=pages)
    answer, _ = download("http://good.example/good", connect=closed)
    assert [*answers, answer] == ["url_failed"] * 4
    assert str(Refused("url_failed")) == MESSAGES["url_failed"]


@pytest.mark.parametrize(("addresses", "expected", "tried", "least"), [
    (["8.8.8.1", SILENT, PUBLIC], JPEG, 3, 0.2),  # of the 0.4 seconds that are left, the second has its half
    ([f"8.8.{count}.1" for count in range(50)], "url_failed", 4, 0),
    ([SILENT], "url_timeout", 1, 0.4),
])  # fmt: skip
def test_a_few_addresses_are_tried_one_after_the_other_in_the_time_that_there_is(addresses, expected, tried, least):
    async def ask():
        async with Internet({"good.example": [addresses]}, {"/good": says(sized(JPEG))}) as net:

            async def connect(address, port):
                if address.endswith(".1"):
                    net.connections.append((address, port))
                    raise ConnectionRefusedError
                return await net.connect(address, port)

            fetcher = Fetcher(resolve=net.resolve, connect=connect, connect_seconds=0.4)
            return await fetching.timed(fetcher, "http://good.example/good"), net

    (answer, seconds), net = asyncio.run(ask())
    assert answer == expected and least <= seconds < 2
    assert net.connections == [(address, 80) for address in addresses[:tried]]


def test_a_lookup_that_hangs_holds_neither_its_request_nor_others(monkeypatch):
    def hang(*arguments, **more):
        time.sleep(1.5)
        raise socket.gaierror("too late")

    async def ask():
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        fetcher = Fetcher(whole_seconds=0.2)
        asked = asyncio.gather(*(fetching.timed(fetcher, "http://good.example/") for _ in range(5)))
        others = asyncio.get_running_loop().run_in_executor(None, time.monotonic)
        began = time.monotonic()
        assert await others - began < 1
        watch = fetching.Watch()
        watching = asyncio.create_task(watch())
        answers = await asked
        watching.cancel()
        return answers, watch.pause

    answers, pause = asyncio.run(ask())
    assert all(code == "url_timeout" and seconds < 1 for code, seconds in answers) and pause < 1


def test_the_systems_resolver_is_asked_for_all_addresses_and_the_connection_for_none(monkeypatch):
    async def ask():
        assert set(await look_up("localhost")) <= {"127.0.0.1", "::1"}
        with socket.create_server(("127.0.0.1", 0)) as server:
            monkeypatch.setattr(socket, "getaddrinfo", None)
            connection = await connect_to("127.0.0.1", server.getsockname()[1])
            assert connection.getpeername() == server.getsockname()
            connection.close()
            with pytest.raises(TypeError):  # a name would be looked up
                await connect_to("localhost", 80)

    asyncio.run(ask())


def test_others_have_their_turn_between_the_smallest_pieces():
    async def ask():
        turns = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        page = repeats(fetching.OK + b"Transfer-Encoding: chunked\r\n\r\n" + fetching.chunk(JPEG[:16]), fetching.chunk(b"a") * 10_000, 100)
        async with Internet(NAMES, {"/small": page}) as net:
            task = asyncio.create_task(other())
            answer = await fetching.timed(Fetcher(resolve=net.resolve, connect=net.connect), "http://good.example/small")
            task.cancel()
        return answer[0], turns

    answer, turns = asyncio.run(ask())
    assert answer == "url_failed" and turns > 20_000


@pytest.mark.parametrize(("scheme", "said"), [("http", b""), ("https", b""), ("http", sized(JPEG, 10**6))])
def test_cancelling_closes_the_connection(scheme, said):
    """While headers are waited for, in the middle of TLS's handshake, and in the middle of the body."""

    async def ask():
        closed = asyncio.Event()

        async def answer(reader, writer):
            writer.write(said)
            while await reader.read(2**16):
                pass
            closed.set()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            fetcher = Fetcher(connect=lambda address, port: connect_to("127.0.0.1", server.sockets[0].getsockname()[1]))
            task = asyncio.create_task(fetcher(f"{scheme}://{PUBLIC}/"))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(closed.wait(), 2)

    asyncio.run(ask())


def test_cancelling_closes_a_connection_that_is_not_there_yet():
    async def ask():
        with socket.socket() as full:  # its queue: further connections are not answered
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            others = [socket.socket() for _ in range(3)]
            for other in others:
                other.setblocking(False)
                other.connect_ex(full.getsockname())
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await connect_to("127.0.0.1", full.getsockname()[1])
            assert len(os.listdir("/proc/self/fd")) == before
            for other in others:
                other.close()

    asyncio.run(ask())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """One that is its own authority, for good.example and its address."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("certificate")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test -keyout key.pem -out certificate.pem"
    names = ["-addext", f"subjectAltName=DNS:good.example,IP:{PUBLIC}"]
    subprocess.run(["openssl", *words.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def secure(certificate):
    """A server's context, the names it is asked for, and the context of a client who trusts it."""
    server, asked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    server.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    server.sni_callback = lambda connection, name, context: asked.append(name)
    return server, asked, ssl.create_default_context(cafile=str(certificate / "certificate.pem"))


def test_https_is_verified_against_the_name_and_asked_for_by_it(secure):
    server, asked, client = secure
    urls = [f"https://{host}/good" for host in ("good.example", PUBLIC, "other.example", f"[{PUBLIC_6}]")]
    *answers, net = download(*urls, server=server, tls=client)
    assert answers == [JPEG, JPEG, "url_failed", "url_failed"] and asked == ["good.example", None, "other.example", None]
    assert [request.split()[4] for request in net.requests] == ["good.example", PUBLIC]


def test_https_needs_an_authority_that_the_system_knows(secure):
    answer, net = download("https://good.example/good", server=secure[0])
    assert answer == "url_failed" and not net.requests


def test_a_redirect_may_lead_up_to_https_but_not_down(secure):
    server, _, client = secure
    pages = {"/up": redirects("https://good.example/good"), "/down": redirects("http://good.example/good")}
    *answers, net = download("http://good.example/up", "https://good.example/down", pages=pages, server=server, tls=client)
    assert answers == [JPEG, "url_refused"] and net.connections == [(PUBLIC, 80), (PUBLIC, 443), (PUBLIC, 443)]


def test_importing_it_is_cheap():
    code = "import sys, captioning.serving.fetch; print({'torch', 'numpy', 'PIL', 'httpx'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "set()\n"
