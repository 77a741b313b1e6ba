"""The service on real sockets: slow, large, impolite and leaving clients, and the end of the process."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT
from PIL import Image

from captioning.build.serving import open_captioner
from captioning.serving import wire
from captioning.serving.server import listen, prepared
from captioning.serving.service import Limits, Service

FILE = io.BytesIO()
Image.new("RGB", (20, 20), "red").save(FILE, format="PNG")
PNG = FILE.getvalue()


def head(length=None, path=b"/describe", more=b""):
    length = len(PNG) if length is None else length
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: %d\r\n%s\r\n" % (path, length, more)


@pytest.fixture(scope="module")
def opened(finished):
    return open_captioner(finished, "cpu")


@pytest.fixture
def running(opened, monkeypatch):
    """running(limits) -> a service on a port, with clocks of a third of a second."""
    monkeypatch.setattr(wire, "PATIENCE", 0.3)
    ends = []

    def begin(limits=None, origins=()) -> Running:
        its = Running(Service(opened[0], limits or Limits()), opened[1], origins)
        ends.append(its)
        return its

    yield begin
    for its in ends:
        its.end()


class Running:
    def __init__(self, service, model, origins):
        self.service, self.listener = service, listen("127.0.0.1", 0)
        self.server = prepared(service, model, origins=origins)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        while service.state != "ready" or not self.server.started:
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), timeout=5)

    def end(self):
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def answer(connection) -> tuple[int, dict, bytes]:
    """One answer: its status, its JSON, its head. (0, {}, b"") where there is none."""
    its_head, body = b"", b""
    while not its_head.endswith(b"\r\n\r\n"):
        if not (byte := connection.recv(1)):
            return 0, {}, its_head
        its_head += byte
    length = int(re.search(rb"content-length: *(\d+)", its_head, re.I)[1])
    while len(body) < length:
        body += connection.recv(length - len(body))
    return int(its_head.split()[1]), json.loads(body), its_head


def seconds_until_cut(connection) -> float:
    began = time.monotonic()
    while connection.recv(65536):
        pass
    return time.monotonic() - began


def test_a_connection_that_says_nothing_is_cut(running):
    assert 0.2 < seconds_until_cut(running().connect()) < 1


def test_a_head_that_drips_is_cut_and_told(running):
    connection = running().connect()
    for byte in head()[:20]:
        connection.sendall(bytes([byte]))
        time.sleep(0.01)
    status, body, _ = answer(connection)
    assert (status, body["error"]["code"]) == (408, "request_timeout") and seconds_until_cut(connection) < 1


def test_a_body_that_drips_is_cut_and_its_memory_let_go(running):
    its = running()
    connection = its.connect()
    connection.sendall(head(5000) + b"x" * 1000)
    began = time.monotonic()
    status, body, _ = answer(connection)
    assert (status, body["error"]["code"]) == (408, "request_timeout") and time.monotonic() - began < 1
    assert seconds_until_cut(connection) < 1
    time.sleep(0.05)
    assert its.service.bytes_inside == 0 and its.service.inside == 0


def test_a_body_that_comes_steadily_may_take_longer(running, monkeypatch):
    monkeypatch.setattr(wire, "BYTES_A_SECOND", len(PNG))  # the whole takes a second more than its clock
    connection = running().connect()
    connection.sendall(head())
    for place in range(0, len(PNG), len(PNG) // 6):
        connection.sendall(PNG[place : place + len(PNG) // 6])
        time.sleep(0.1)
    assert answer(connection)[0] == 200


def test_a_connection_is_kept_for_the_next_request_and_cut_when_none_comes(running):
    connection = running().connect()
    for _ in range(3):
        connection.sendall(head() + PNG)
        assert answer(connection)[0] == 200
    assert 0.2 < seconds_until_cut(connection) < 1


def test_an_answer_that_nobody_reads_does_not_hold_its_connection(running):
    its = running()
    connection = its.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(b"GET /docs-files/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 20)  # of more than a megabyte each
    end = time.monotonic() + 10
    while its.server.server_state.connections:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("large", [b"X-Large: " + b"x" * 20_000 + b"\r\n", b"X-Large: " + b"x" * 500_000 + b"\r\n", b"X: y\r\n" * 4000])
def test_a_large_head_is_refused_in_the_shape_of_all_errors(running, large):
    connection = running().connect()
    connection.sendall(head(more=large))
    status, body, _ = answer(connection)
    assert (status, body["error"]["code"]) == (431, "head_too_large")


def test_nonsense_is_refused_in_the_shape_of_all_errors(running):
    connection = running().connect()
    connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    status, body, _ = answer(connection)
    assert (status, body["error"]["code"]) == (400, "bad_request")


def test_a_body_that_is_too_large_is_refused_before_it_comes_and_the_connection_goes_on(running):
    connection = running(Limits(megabytes=1)).connect()
    connection.sendall(head(2**21))
    assert answer(connection)[0] == 413
    connection.sendall(b"x" * 2**21)
    connection.sendall(head() + PNG)
    assert answer(connection)[0] == 200


def test_where_there_is_no_room_the_refused_is_not_parsed_and_its_body_not_taken_for_a_request(running):
    its = running(Limits(queue=1))
    its.service.inside = 1
    connection = its.connect()
    seen = its.server.server_state.total_requests
    body = head() + PNG  # a body that looks like a request
    for pieces in ([head(len(body)) + body], [head(len(body)), body], [(head(len(body)) + body)[:300], (head(len(body)) + body)[300:]]):
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.02)
        status, error, its_head = answer(connection)
        assert (status, error["error"]["code"]) == (503, "overloaded") and b"Retry-After: " in its_head
    connection.sendall((head(len(body)) + body) * 2)
    assert [answer(connection)[0] for _ in range(2)] == [503, 503]
    assert its.server.server_state.total_requests == seen
    its.service.inside = 0
    connection.sendall(head() + PNG)
    assert answer(connection)[0] == 200


def test_thousands_of_tiny_chunks_do_not_keep_others_waiting(running):
    its = running()
    large, other = its.connect(), its.connect()
    large.sendall(b"POST /describe HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n")
    sending = threading.Thread(target=large.sendall, args=(b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n",))
    began = time.monotonic()
    sending.start()
    other.sendall(head() + PNG)
    assert answer(other)[0] == 200 and time.monotonic() - began < 1
    assert answer(large)[0] == 422
    sending.join()


def test_trailers_are_limited_as_heads_are(running):
    connection = running().connect()
    connection.sendall(
        b"POST /describe HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    )
    with pytest.raises(OSError):
        for _ in range(500):
            connection.sendall(b"a: b\r\n" * 2000)
        raise AssertionError("a megabyte of trailers was taken")


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_body_behind_an_offer_to_upgrade_is_a_body_and_no_request(running, pieces):
    connection = running().connect()
    body = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    offer = head(len(body), more=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n")
    place = offer.index(b"grade: h2c") if pieces == 2 else len(offer)
    connection.sendall(offer[:place])
    time.sleep(0.05)
    connection.sendall(offer[place:])
    time.sleep(0.05)
    try:
        connection.sendall(body)
        assert answer(connection)[0] == (422 if pieces == 1 else 400)
        assert connection.recv(100) == b""
    except OSError:
        assert pieces == 2  # it was closed at once


def test_without_room_who_asks_first_or_speaks_once_is_refused_and_let_go(running):
    its = running(Limits(queue=1))
    its.service.inside = 1
    for more in (b"Expect: 100-continue\r\n", b"Connection: close\r\n"):
        connection = its.connect()
        connection.sendall(head(more=more) + (b"" if b"Expect" in more else PNG))
        status, _, its_head = answer(connection)
        assert status == 503 and b"Connection: close" in its_head and seconds_until_cut(connection) < 0.2


def test_without_room_a_page_of_an_allowed_origin_may_read_why(running):
    its = running(Limits(queue=1), origins=["https://here.org"])
    its.service.inside = 1
    for origin, allowed in ((b"https://here.org", True), (b"https://there.org", False)):
        connection = its.connect()
        connection.sendall(head(more=b"Origin: " + origin + b"\r\n") + PNG)
        assert (b"Access-Control-Allow-Origin: https://here.org" in answer(connection)[2]) == allowed


def test_a_last_answer_that_nobody_reads_does_not_hold_its_connection(running):
    its = running()
    connection = its.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(b"GET /page/script.js HTTP/1.1\r\nHost: x\r\n\r\n" * 258)
    end = time.monotonic() + 10
    while its.server.server_state.connections:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_without_room_a_head_that_comes_in_pieces_is_refused_too(running):
    its = running(Limits(queue=1))
    its.service.inside = 1
    connection = its.connect()
    connection.sendall(head()[:30])
    time.sleep(0.05)
    connection.sendall(head()[30:] + PNG)
    status, error, _ = answer(connection)
    assert (status, error["error"]["code"]) == (503, "overloaded")


def test_a_client_that_leaves_has_its_picture_dropped(running):
    its = running()
    described, seen, go = its.service.batcher.describe, [], threading.Event()

    def slowly(pictures, asked):
        seen.append(len(pictures))
        go.wait(5)
        return described(pictures, asked)

    its.service.batcher.describe = slowly
    stays, leaves = its.connect(), its.connect()
    stays.sendall(head() + PNG)
    while not seen:
        time.sleep(0.01)
    leaves.sendall(head() + PNG)
    while its.service.inside < 2:
        time.sleep(0.01)
    leaves.close()
    while its.service.inside == 2:
        time.sleep(0.01)
    go.set()
    assert answer(stays)[0] == 200
    time.sleep(0.05)
    assert seen == [1]
    stays.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    time.sleep(0.1)
    assert b'path="/describe",status="499"} 1.0' in stays.recv(65536)  # and no fault of the service


def test_a_connection_too_many_is_closed(running, monkeypatch):
    its = running()
    monkeypatch.setattr(wire, "CONNECTIONS", 2)
    kept = [its.connect() for _ in range(2)]
    time.sleep(0.05)
    with pytest.raises(OSError):
        more = its.connect()
        more.sendall(head() + PNG)
        if not more.recv(100):
            raise ConnectionResetError
    kept[0].sendall(head() + PNG)
    assert answer(kept[0])[0] == 200


def test_an_answer_is_sent_at_once_and_does_not_wait_for_more_to_send(running):
    its = running()
    connection = its.connect()
    connection.sendall(head() + PNG)
    assert answer(connection)[0] == 200
    (ours,) = its.server.server_state.connections
    assert ours.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# The process


def begin(run, *options, **environment):
    command = [sys.executable, "-m", "captioning.cli", "serve", "--run", str(run), "--device", "cpu", *options]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"} | environment)


def test_sigterm_lets_all_that_was_accepted_be_answered_and_ends_with_0(finished):
    process = begin(finished, "--port", "0", "--batch", "1")
    line = json.loads(process.stderr.readline())
    port = int(re.search(r":(\d+)/", line["url"])[1])
    watching = socket.create_connection(("127.0.0.1", port))
    while True:
        watching.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        if answer(watching)[0] == 200:
            break
        time.sleep(0.05)
    connections = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(8)]
    for connection in connections:
        connection.sendall(head(path=b"/describe?beam_size=10&max_length=50") + PNG)
    inside = 0
    while inside < 4:  # some are being described, others wait
        watching.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        content = b""
        while b"captioning_ready" not in content.rpartition(b"# TYPE")[2]:
            content += watching.recv(65536)
        inside = float(re.search(rb"captioning_pictures_inside ([\d.]+)", content)[1])
        if all(peek(connection) for connection in connections):
            break
    process.send_signal(signal.SIGTERM)
    assert [answer(connection)[0] for connection in connections] == [200] * 8
    assert process.wait(20) == 0
    assert "Traceback" not in process.stderr.read()


def peek(connection) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--queue", "0"], "--queue 0: "),
        (["--deadline", "-1"], "--deadline -1.0: "),
        (["--host", "256.1.1.1"], "--host 256.1.1.1 --port 5000: cannot listen there"),
        (["--port", "70000"], "--port 70000: must be from 0 to 65535"),
        (["--allow-host", "a.org"], "--allow-host a.org: needs --allow-urls"),
        (["--cors-origin", "https://a.org/"], "--cors-origin https://a.org/: must be scheme and host"),
        (["--api-key-file", "/nowhere"], "--api-key-file /nowhere: cannot be read"),
    ],
)
def test_a_wrong_option_is_answered_in_one_sentence(capsys, options, said, tmp_path):
    from captioning.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["serve", "--run", str(tmp_path), *options])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"error: {said}") and error.count("\n") == 1


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(capsys, tmp_path):
    from captioning.cli import main

    taken = listen("127.0.0.1", 0)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--run", str(tmp_path), "--port", str(taken.getsockname()[1])])
    assert ended.value.code == 2 and "already in use" in capsys.readouterr().err
    taken.close()
