"""The service: what it answers, what it refuses, and what becomes of it when the model comes to grief."""

import io
import json
import logging
import re
import threading
import time

import hypothesis
import pytest
import schemathesis
import torch
from conftest import ROOT
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient

from benchmarks.faults.pictures import BOMBS, damaged
from captioning.build.serving import open_captioner
from captioning.data.transforms import Transform
from captioning.serving.answers import words_of
from captioning.serving.app import application
from captioning.serving.batching import Batcher, Waiting
from captioning.serving.captioner import Asked, Candidate, Captioner, sentence
from captioning.serving.fetch import MESSAGES, Refused
from captioning.serving.problems import KINDS, Problem
from captioning.serving.service import Limits, Room, Service

CONFORMANCE = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


def picture(number: int = 0, size=(40, 30), kind="PNG") -> bytes:
    file = io.BytesIO()
    image = Image.new("RGB", size, (37 * number % 256, 91 * number % 256, 13 * number % 256))
    image.paste((255, 255, 255), (number % 20, 5, number % 20 + 9, 20))
    image.save(file, format=kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def opened(finished):
    return open_captioner(finished, "cpu")


@pytest.fixture
def serve(opened):
    """serve(limits, **more) -> a client of a service that is ready; `client.service` is what it serves."""
    captioner, model = opened
    clients = []

    def begin(limits=None, download=None, **more) -> TestClient:
        service = Service(captioner, limits or Limits(), download)
        client = TestClient(application(service, model, **more), raise_server_exceptions=False)
        client.service = service
        client.__enter__()
        clients.append(client)
        until(lambda: service.state == "ready")
        return client

    yield begin
    for client in clients:
        client.service.batcher.describe = captioner
        client.__exit__(None, None, None)


def until(is_so, seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def describe(client, content: bytes, query: str = "", **headers):
    return client.post(f"/describe{query}", content=content, headers={"Content-Type": "image/png"} | headers)


def code(answer) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "request_id"} and error["request_id"] == answer.headers["x-request-id"]
    assert answer.status_code == KINDS[error["code"]].status
    return answer.status_code, error["code"]


# What it answers


def test_a_form_and_a_bare_body_give_the_sentence_that_the_model_says(serve, opened):
    client, (captioner, _) = serve(), opened
    said = captioner([captioner.prepare(captioner.read(picture(3)))], Asked())[0][0].caption
    wanted = {"description": sentence(said)}
    assert describe(client, picture(3)).json() == wanted
    assert client.post("/describe", files={"file": ("x.png", picture(3), "image/png")}).json() == wanted
    assert sentence("i'm a dog and i run") == "I'm a dog and I run."


def test_detail_tells_candidates_and_where_each_word_looked(serve):
    client = serve()
    answer = describe(client, picture(1), "?detail=1&num_captions=2&beam_size=4&max_length=5").json()
    assert len(answer["candidates"]) == 2 and answer["candidates"][0]["description"] == answer["description"]
    assert answer["candidates"][0]["log_p"] >= answer["candidates"][1]["log_p"]
    words = [its["word"] for its in answer["words"]]
    assert sentence(" ".join(words)) == answer["description"] and len(words) <= 5
    for its in answer["words"]:
        assert sum(map(sum, its["attention"])) == pytest.approx(1, abs=0.02)
    assert answer["frame"] == {"left": 0.0, "top": 0.0, "width": 1.0, "height": 1.0}
    assert answer["model"]["decoder"] == "SoftAttentionDecoder" and "/" not in json.dumps(answer["model"])
    assert answer["timing"]["model_ms"] > 0


def test_a_words_map_is_rows_of_cells_as_the_grid_is():
    words = words_of(Candidate("a dog", -1.0, torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]])))
    assert [its["word"] for its in words] == ["a", "dog"]
    assert words[0]["attention"] == [[0.1, 0.2], [0.3, 0.4]]


def test_the_frame_is_the_part_of_the_picture_that_the_model_sees():
    assert Transform(fit="squash").frame(40, 30) == (0, 0, 1, 1)
    assert Transform(fit="crop").frame(40, 30) == (0.125, 0, 0.75, 1)
    assert Transform(fit="crop").frame(30, 40) == (0, 0.125, 1, 0.75)


def test_more_captions_than_the_default_beam_widen_it(serve):
    assert len(describe(serve(), picture(), "?num_captions=5").json()["candidates"]) == 5


def test_of_several_images_a_broken_one_fails_alone(serve):
    files = [("file", ("a.png", picture(1))), ("file", ("b.png", b"GIF89a nothing")), ("file", ("c.png", picture(2)))]
    client = serve()
    results = client.post("/describe", files=files).json()["results"]
    assert [list(its) for its in results] == [["description"], ["error"], ["description"]]
    assert results[1]["error"]["code"] == "image_unreadable"
    assert results[2] == describe(client, picture(2)).json()


def test_a_url_is_fetched_only_where_that_is_allowed(serve):
    asked = []

    async def download(url):
        asked.append(url)
        return picture(4)

    body = {"image_url": "https://example.org/a.png"}
    assert code(serve().post("/describe", json=body)) == (403, "urls_off")
    client = serve(download=download)
    answer = client.post("/describe?detail=1", json=body).json()
    assert asked == ["https://example.org/a.png"] and answer["description"] == describe(client, picture(4)).json()["description"]
    assert answer["picture"].startswith("data:image/jpeg;base64,")


def test_why_a_url_is_refused_is_said_with_its_code_and_nothing_more(serve):
    async def download(url):
        raise Refused("url_refused") from OSError("10.1.2.3 does not answer")

    answer = serve(download=download).post("/describe", json={"image_url": "http://a.example.org/"})
    assert code(answer) == (422, "url_refused") and "10.1.2.3" not in answer.text
    assert set(MESSAGES) <= set(KINDS)


# What it refuses


def test_each_mistake_has_its_code(serve):
    client = serve(Limits(images=2))
    json_type = {"Content-Type": "application/json"}
    assert code(describe(client, b"no image")) == (422, "image_unreadable")
    assert code(describe(client, b"")) == (400, "bad_request")
    assert code(client.post("/describe", content=b"{", headers=json_type)) == (400, "bad_request")
    assert code(client.post("/describe", content=b'{"image_url": 3}', headers=json_type)) == (400, "bad_request")
    assert code(client.post("/describe", content=b"[" * 9999, headers=json_type)) == (400, "bad_request")
    assert code(client.post("/describe", content=b"x", headers={"Content-Type": "text/html"})) == (415, "unsupported_media_type")
    assert code(client.post("/describe", content=b"x", headers={"Content-Type": "multipart/form-data"})) == (400, "bad_request")
    assert code(client.post("/describe", files={"other": b"x"})) == (400, "bad_request")
    assert code(client.post("/describe", files=[("file", (f"{i}.png", picture(i))) for i in range(3)])) == (413, "too_many_images")
    assert code(describe(client, picture(), "?beam_size=11")) == (422, "invalid_parameter")
    assert code(describe(client, picture(), "?beam_size=2&num_captions=3")) == (422, "invalid_parameter")
    assert code(client.get("/nothing")) == (404, "not_found")
    assert code(client.get("/describe")) == (405, "method_not_allowed")


def test_a_body_over_the_limit_is_refused_with_and_without_its_length(serve):
    client = serve(Limits(megabytes=1))
    large = b"x" * (2**20 + 1)
    assert code(describe(client, large)) == (413, "too_large")
    chunks = (large[place : place + 2**16] for place in range(0, len(large), 2**16))
    assert code(client.post("/describe", content=chunks, headers={"Content-Type": "image/png"})) == (413, "too_large")
    assert code(client.post("/describe", files={"file": large})) == (413, "too_large")
    assert client.service.bytes_inside == 0


def test_bodies_together_take_no_more_memory_than_is_given_to_them(serve, monkeypatch):
    monkeypatch.setattr("captioning.serving.service.BYTES_INSIDE", 50)
    client = serve()
    assert code(describe(client, picture())) == (503, "overloaded")
    assert client.service.bytes_inside == 0


def test_a_key_is_asked_of_all_who_describe_and_of_none_who_look_whether_it_lives(serve):
    client = serve(api_key="secret")
    assert code(describe(client, picture())) == (401, "unauthorized")
    assert code(describe(client, picture(), **{"X-API-Key": "secre"})) == (401, "unauthorized")
    assert describe(client, picture(), **{"X-API-Key": "secret"}).status_code == 200
    assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/", "/v1/model", "/metrics")] == [200, 200, 200, 401, 401]


def test_other_pages_may_ask_only_where_they_are_named(serve):
    origin = {"Origin": "https://here.org"}
    assert "access-control-allow-origin" not in describe(serve(), picture(), **origin).headers
    client = serve(origins=["https://here.org"])
    assert describe(client, picture(), **origin).headers["access-control-allow-origin"] == "https://here.org"
    assert describe(client, b"broken", **origin).headers["access-control-allow-origin"] == "https://here.org"
    assert "access-control-allow-origin" not in describe(client, picture(), Origin="https://there.org").headers


# Load


def test_where_the_house_is_full_a_picture_is_refused_at_once(serve):
    client = serve(Limits(queue=2))
    go = threading.Event()
    described = client.service.batcher.describe
    client.service.batcher.describe = lambda *given: go.wait(5) and described(*given)
    waiting = [threading.Thread(target=describe, args=(client, picture(number))) for number in range(2)]
    for thread in waiting:
        thread.start()
    until(lambda: client.service.inside == 2)
    began = time.monotonic()
    answer = describe(client, picture(9))
    assert code(answer) == (503, "overloaded") and int(answer.headers["retry-after"]) >= 1 and time.monotonic() - began < 0.1
    go.set()
    for thread in waiting:
        thread.join()
    assert describe(client, picture(9)).status_code == 200 and client.service.inside == 0


def test_more_work_than_fits_half_a_deadline_is_not_let_in(serve):
    client = serve(Limits(deadline=1.0))
    client.service.batcher.seconds_each, client.service.inside = 0.1, 6
    assert code(describe(client, picture())) == (503, "overloaded")
    client.service.inside = 0
    assert describe(client, picture()).status_code == 200


def test_who_waits_longer_than_the_deadline_is_told_so_and_never_described(serve):
    client = serve(Limits(deadline=0.3))
    described, seen, go = client.service.batcher.describe, [], threading.Event()

    def slowly(pictures, asked):
        seen.append(len(pictures))
        go.wait(5)
        return described(pictures, asked)

    client.service.batcher.describe = slowly
    threads = [threading.Thread(target=lambda n=n: codes.append(code(describe(client, picture(n))))) for n in range(2)]
    codes: list = []
    threads[0].start()
    until(lambda: seen == [1])
    threads[1].start()
    for thread in threads:
        thread.join()
    go.set()
    assert codes == [(504, "deadline")] * 2
    time.sleep(0.1)
    assert seen == [1]


# The thread that describes


PROBE = "the probe"


def asked_of(batcher: Batcher, pictures, asked=None, deadline: float = 60) -> list[Waiting]:
    waiting = [Waiting(its, asked or Asked(), time.monotonic() + deadline) for its in pictures]
    for its in waiting:
        batcher.put(its)
    return waiting


def echo(pictures, asked):
    for its in pictures:
        if isinstance(its, BaseException):
            raise its
    return [(its, asked) for its in pictures]


@pytest.fixture
def batcher():
    made = []

    def make(describe=echo, **more) -> Batcher:
        made.append(Batcher(describe, (PROBE, [Asked()]), **more))
        until(lambda: not made[-1].fails)
        return made[-1]

    yield make
    for its in made:
        its.close()


def test_what_waits_together_is_described_together_if_the_same_is_asked(batcher):
    seen, go = [], threading.Event()

    def slowly(pictures, asked):
        if PROBE not in pictures:
            go.wait(5)
            seen.append(pictures)
        return echo(pictures, asked)

    its = batcher(slowly, most=3)
    first = asked_of(its, [1])
    until(lambda: its.doing)
    other = Asked(beam_size=5)
    rest = asked_of(its, [2, 3]) + asked_of(its, [4], other) + asked_of(its, [5, 6])
    go.set()
    assert [w.answer.result(5)[0] for w in first + rest] == [1, 2, 3, 4, 5, 6]
    assert rest[2].answer.result()[1] == other
    assert seen == [[1], [2, 3, 5], [4], [6]]


def test_a_poisoned_picture_fails_alone_and_the_service_stays_ready(batcher):
    its = batcher(most=4, wait=0.2)
    waiting = asked_of(its, [1, ValueError("poison"), 3, 4])
    assert [w.answer.result(5)[0] for w in waiting if w.picture != waiting[1].picture] == [1, 3, 4]
    with pytest.raises(Problem, match="cannot describe"):
        waiting[1].answer.result(5)
    until(lambda: not its.fails, 1)


def test_whose_time_is_over_is_told_so_without_being_described(batcher):
    seen, go = [], threading.Event()
    its = batcher(lambda pictures, asked: (go.wait(5) if 1 in pictures else None, seen.extend(pictures), echo(pictures, asked))[2])
    first = asked_of(its, [1])
    until(lambda: its.doing)
    late = asked_of(its, [2], deadline=0.05)
    time.sleep(0.1)
    go.set()
    first[0].answer.result(5)
    with pytest.raises(Problem, match="no time left"):
        late[0].answer.result(5)
    assert 2 not in seen


def test_who_has_left_is_not_described(batcher):
    seen, go = [], threading.Event()
    its = batcher(lambda pictures, asked: (go.wait(5) if 1 in pictures else None, seen.extend(pictures), echo(pictures, asked))[2])
    _, second, third = asked_of(its, [1]) + asked_of(its, [2, 3], Asked(beam_size=1))
    until(lambda: its.doing)
    second.answer.cancel()
    go.set()
    assert third.answer.result(5)[0] == 3 and 2 not in seen


def test_a_lone_poisoned_picture_takes_nobody_else_along(serve):
    client = serve()
    described, poison = client.service.batcher.describe, client.service.read(picture(7), time.monotonic() + 9, False)[0]
    fails = []

    def poisoned(pictures, asked):
        fails.append(client.service.batcher.fails)
        if any(torch.equal(its, poison) for its in pictures):
            raise ValueError("poison")
        return described(pictures, asked)

    client.service.batcher.describe = poisoned
    assert code(describe(client, picture(7))) == (500, "model_failed")
    assert describe(client, picture(1)).status_code == 200 and not any(fails) and client.get("/readyz").status_code == 200


def test_a_model_whose_numbers_are_none_is_no_healthy_model(serve, opened):
    client, layer = serve(), opened[0].model.decoder.words.out.bias
    before = layer.detach().clone()
    try:
        layer.data.fill_(float("nan"))
        assert code(describe(client, picture())) == (500, "model_failed")
        until(lambda: client.get("/readyz").status_code == 503, 1)
    finally:
        layer.data.copy_(before)
    until(lambda: client.get("/readyz").status_code == 200, 2)


def test_a_fault_in_one_picture_of_several_is_an_error_beside_the_others(serve, monkeypatch):
    client, read = serve(), Captioner.read
    monkeypatch.setattr(Captioner, "read", lambda self, content: read(self, content) if content != b"odd" else 1 / 0)
    files = [("file", ("a.png", picture(1))), ("file", ("b.png", b"odd"))]
    results = client.post("/describe", files=files).json()["results"]
    assert "description" in results[0] and results[1]["error"]["code"] == "internal"
    assert code(describe(client, b"odd")) == (500, "internal")
    monkeypatch.setattr(Room, "enter", lambda self, pictures: 1 / 0)
    assert code(describe(client, picture())) == (500, "internal")  # wherever it is raised


def test_one_request_of_pictures_that_are_slow_to_read_leaves_a_reader_to_others_and_keeps_its_deadline(serve, monkeypatch):
    client, read, now, most = serve(Limits(deadline=1.0)), Captioner.read, [0], [0]

    def slowly(self, content):
        if content != picture(1):
            now[0] += 1
            most[0] = max(most[0], now[0])
            time.sleep(0.4)
            now[0] -= 1
        return read(self, content)

    monkeypatch.setattr(Captioner, "read", slowly)
    answers = []
    files = [("file", (f"{number}.png", picture(2 + number))) for number in range(5)]
    thread = threading.Thread(target=lambda: answers.append(client.post("/describe", files=files)))
    began = time.monotonic()
    thread.start()
    until(lambda: now[0])
    assert describe(client, picture(1)).status_code == 200 and time.monotonic() - began < 0.8
    thread.join()
    assert time.monotonic() - began < 1.4 and most == [1]
    codes = [its.get("error", {}).get("code") for its in answers[0].json()["results"]]
    assert codes == [None, None, "deadline", "deadline", "deadline"] and client.service.unread == 0
    assert client.service.seconds_read > 0.05


def test_where_reading_is_behind_no_more_is_let_in(serve):
    client = serve(Limits(deadline=1.0))
    client.service.unread, client.service.seconds_read = 6, 0.4
    assert code(describe(client, picture())) == (503, "overloaded")
    client.service.unread = 0


def test_downloads_take_places_and_memory_as_uploads_do(serve):
    seen = []

    async def download(url):
        seen.append((client.service.inside, client.service.bytes_inside))
        return picture(4)

    client = serve(download=download)
    assert client.post("/describe", json={"image_url": "https://example.org/a.png"}).status_code == 200
    assert seen[0][0] == 1 and seen[0][1] > 10 * 2**20 and client.service.inside == client.service.bytes_inside == 0


def test_where_the_model_fails_on_everything_it_is_red_until_it_works_again(serve, caplog):
    client = serve()
    described, broken = client.service.batcher.describe, [True]

    def failing(*given):
        if broken[0]:
            raise RuntimeError("no memory")
        return described(*given)

    client.service.batcher.describe = failing
    assert code(describe(client, picture())) == (500, "model_failed")
    until(lambda: client.get("/readyz").status_code == 503, 1)
    assert code(describe(client, picture())) == (503, "not_ready") and client.get("/healthz").status_code == 200
    broken[0] = False
    until(lambda: client.get("/readyz").status_code == 200, 2)
    assert describe(client, picture()).status_code == 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_begun_again_and_who_waited_is_told(serve):
    client = serve()
    described, dies = client.service.batcher.describe, [True]

    def once(*given):
        if dies.pop() if dies else False:
            raise SystemExit
        return described(*given)

    client.service.batcher.describe = once
    assert code(describe(client, picture())) == (500, "model_failed")
    until(lambda: client.get("/readyz").status_code == 200, 2)
    assert describe(client, picture()).status_code == 200


def test_a_model_that_hangs_is_red_within_a_second_and_ends_the_process(serve):
    ended = []
    client = serve(Limits(deadline=0.5), end=ended.append)
    go = threading.Event()
    client.service.batcher.describe = lambda pictures, asked: [go.wait(20)]
    client.service.batcher.slowest = 0.01
    began = time.monotonic()
    assert code(describe(client, picture())) == (504, "deadline")
    until(lambda: client.get("/readyz").status_code == 503, 2)
    assert 0.8 <= time.monotonic() - began < 1.5  # what took 10 ms before is said to hang
    assert code(describe(client, picture())) == (503, "not_ready")
    until(lambda: ended, 3)
    assert "hangs" in ended[0]
    go.set()


def test_a_model_that_gives_signs_of_life_is_not_said_to_hang_however_long_it_takes(serve):
    client = serve()
    captioner, states = client.service.captioner, []

    def long(pictures, asked):
        for _ in range(4):
            time.sleep(0.3)
            states.append(client.service.state)
            captioner.beating(lambda: None)
        return [[Candidate("a dog", -1.0, None)] for _ in pictures]

    client.service.batcher.describe = long
    assert describe(client, picture()).status_code == 200
    assert states == ["ready"] * 4


# What it says of itself


def test_each_answer_and_its_line_in_the_log_have_one_id_and_the_log_has_no_picture(serve, caplog):
    client = serve()
    log = logging.getLogger("captioning.serve")
    log.propagate, log.disabled = True, False  # another test's program may have set up logging for itself
    with caplog.at_level(logging.INFO, "captioning.serve"):
        answer = describe(client, picture(), "?detail=1", **{"X-Request-ID": "abc-1"})
        other = describe(client, picture(), **{"X-Request-ID": "not\tone of ours" + "x" * 70})
    records = [record for record in caplog.records if record.getMessage() == "request"]
    lines = list({record.fields["id"]: record.fields for record in records}.values())  # pytest may hear the same twice
    assert answer.headers["x-request-id"] == "abc-1" == lines[0]["id"]
    assert re.fullmatch("[0-9a-f]{32}", lines[1]["id"]) and other.headers["x-request-id"] == lines[1]["id"]
    assert set(lines[0]) == {"id", "method", "path", "status", "ms", "pictures"} and lines[0]["path"] == "/describe"


def test_the_metrics_count_requests_pictures_and_batches(serve):
    client = serve()
    describe(client, picture())
    describe(client, b"broken")
    text = client.get("/metrics").text
    assert 'captioning_requests_total{code="",path="/describe",status="200"} 1.0' in text
    assert 'captioning_requests_total{code="image_unreadable",path="/describe",status="422"} 1.0' in text
    assert "captioning_ready 1.0" in text and "captioning_pictures_inside 0.0" in text


def test_the_documentation_asks_no_other_host(serve):
    client = serve()
    assert "//" not in client.get("/docs").text.replace("// ", "")
    assert "/describe" in client.get("/openapi.json").json()["paths"]
    assert "frame-ancestors 'none'" in client.get("/").headers["content-security-policy"]


def test_every_code_is_in_the_documentation():
    text = (ROOT / "docs" / "serving.md").read_text()
    for name, kind in KINDS.items():
        assert f"| `{name}` | {kind.status} |" in text


def test_described_with_others_a_picture_gets_the_caption_that_it_gets_alone(serve):
    client = serve()
    pictures = [picture(number) for number in range(16)]
    alone = [describe(client, its).json() for its in pictures]
    files = [("file", (f"{number}.png", its)) for number, its in enumerate(pictures)]
    assert client.post("/describe", files=files).json()["results"] == alone
    assert 'captioning_batch_pictures_bucket{le="1.0"} 16.0' in client.get("/metrics").text  # and the others were in larger ones


def test_broken_pictures_and_bombs_are_the_clients_fault_and_have_a_code(serve):
    client = serve()
    made = {name: content for name, content in damaged(20, 12, 24).items() if isinstance(content, bytes)} | BOMBS
    for name, content in made.items():
        answer = describe(client, content)
        if answer.status_code != 200 or name in BOMBS or name.startswith("kind-"):
            assert code(answer) in ((422, "image_unreadable"), (400, "bad_request")), name
    assert client.get("/readyz").status_code == 200


def test_no_request_that_a_tool_makes_of_the_openapi_gets_a_fault_or_an_answer_that_is_not_in_it(serve):
    openapi, count = schemathesis.openapi.from_asgi("/openapi.json", serve(Limits(images=2)).app), 0
    for operation in openapi.get_all_operations():

        @hypothesis.given(case=operation.ok().as_strategy())
        @hypothesis.settings(
            max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        def check(case):
            case.call_and_validate(checks=CONFORMANCE)

        check()
        count += 1
    assert count == 5
