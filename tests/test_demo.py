"""The demo and what is published: they caption as the run does, read nothing but uploads, ask nobody, and leave nothing behind."""

import ast
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from io import BytesIO
from pathlib import Path

import pytest
from conftest import CNN, ROOT, SMALL, TINY
from PIL import Image

from captioning.build.publish import MARK, blank, blank_command, blanked, publish, with_rule
from captioning.build.serving import open_captioner
from captioning.cli import main as captioning_command
from captioning.errors import UserError
from captioning.serving import gate
from captioning.serving.captioner import Asked
from captioning.serving.demo import Model, answer
from captioning.serving.gate import BLOCK, paths_in, tidied

pytest.importorskip("gradio_client", reason="no gradio: pip install -e '.[demo]'")
httpx = pytest.importorskip("httpx")

LISTENED = """
import sys
def heard(event, details):
    if event in ("socket.getaddrinfo", "socket.connect", "socket.sendto"):
        print("ASKED", details[0] if event == "socket.getaddrinfo" else details[1], flush=True)
sys.addaudithook(heard)
from captioning.cli import main
main(sys.argv[1:])
"""


def noise(seed: int, side: int = 32) -> bytes:
    file = BytesIO()
    Image.frombytes("RGB", (side, side), bytes((seed * 97 + 31 * n * n) % 256 for n in range(3 * side * side))).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def plain(drawings, tmp_path_factory) -> Path:
    """A run whose decoder does not attend."""
    from captioning.build.compose import as_dict, composed
    from captioning.build.jobs import Training

    run = tmp_path_factory.mktemp("runs") / "plain"
    small = [*TINY, *CNN, *SMALL, "decoder=gru", "trainer=smoke", f"data.root={drawings}", f"run={run}"]
    Training(as_dict(composed("train", small))).start()
    return run


@pytest.fixture(scope="module")
def run(finished, drawings, tmp_path_factory) -> Path:
    """The finished run, evaluated; its command names the folders of this machine."""
    from captioning.build.compose import composed
    from captioning.build.evaluation import evaluate

    path = shutil.copytree(finished, tmp_path_factory.mktemp("demo") / "run")
    evaluate(composed("eval", [f"run={path}", "split=test", "show=0", "device=cpu", "features=off"]))
    about = json.loads((path / "env.json").read_text())
    about["command"] = f"{path}/train.py data.root={drawings} run={path}"
    (path / "env.json").write_text(json.dumps(about))
    return path


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


@contextmanager
def served(folder: Path, port: int, *command: str, cwd: Path = ROOT, **environment: str):
    """-> The process and its address, once it answers. What it writes is in FOLDER/log, its temporary files are below FOLDER/tmp."""
    (folder / "tmp").mkdir(parents=True)
    with open(folder / "log", "w") as log:
        known = {name: value for name, value in os.environ.items() if not name.startswith(("GRADIO", "PYTHONPATH"))}
        environment = known | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", **environment}
        process = subprocess.Popen([sys.executable, *command], cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 60
        while "Ctrl-C" not in (folder / "log").read_text():
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


class Visitor:
    """Asks as the page does."""

    def __init__(self, address: str):
        self.address, self.session = address, os.urandom(6).hex()
        self.api, self.client = f"{address}/gradio_api", httpx.Client(trust_env=False, timeout=60)
        config = self.client.get(f"{address}/config").json()
        self.function = next(its["id"] for its in config["dependencies"] if its["api_name"] == "caption")

    def upload(self, content: bytes, name: str = "picture.png"):
        return self.client.post(f"{self.api}/upload", files={"files": (name, content)})

    def join(self, *data):
        asked = {"data": data, "fn_index": self.function, "session_hash": self.session}
        return self.client.post(f"{self.api}/queue/join", json=asked)

    def ask(self, content: bytes, model: str, beam_size: int = 3, captions: int = 1, name: str = "picture.png"):
        """-> caption, further captions, problem, tiles."""
        path = self.upload(content, name).json()[0]
        assert self.join(given(path), model, beam_size, captions).status_code == 200
        with self.client.stream("GET", f"{self.api}/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:") and (message := json.loads(line[5:]))["msg"] == "process_completed":
                    assert message["success"], message
                    return [its["value"] for its in message["output"]["data"]]
        raise AssertionError("no answer")


def given(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def demo(run, plain, drawings, tmp_path_factory):
    folder, port = tmp_path_factory.mktemp("served"), free_port()
    options = ["--run", str(run), "--run", str(plain), "--port", str(port), "--device", "cpu"]
    with served(folder, port, "-c", LISTENED, "demo", *options) as (_, address):
        yield Visitor(address), folder


def test_the_page_says_what_the_captioner_says(demo, run):
    visitor, _ = demo
    captioner, _ = open_captioner(run, "cpu")
    for seed in (1, 2):
        expected = captioner([captioner.prepare(captioner.read(noise(seed)))], Asked(beam_size=4, candidates=3))[0]
        caption, others, problem, _ = visitor.ask(noise(seed), "run", 4, 3)
        assert caption == expected[0].description and problem == ""
        assert others.splitlines() == [f"{its.description}  (log p {its.log_p:.2f})" for its in expected[1:]]


def test_each_model_answers_and_one_that_attends_has_a_tile_a_word(demo, run, plain):
    visitor, folder = demo
    for path in (run, plain):
        captioner, _ = open_captioner(path, "cpu")
        best = captioner([captioner.prepare(captioner.read(noise(3)))], Asked())[0][0]
        caption, _, _, tiles = visitor.ask(noise(3), path.name)
        assert caption == best.description
        assert [tile["caption"] for tile in tiles] == (best.caption.split() if captioner.attends else [])
        for tile in tiles:
            assert Path(tile["image"]["path"]).is_relative_to(folder / "tmp")


def bomb() -> bytes:
    file = BytesIO()
    Image.new("1", (8000, 8000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("broken.png", noise(1)[:200], "The image: cannot be decoded"),
        ("text.jpg", b"no picture at all", "The image: not an image of a known format"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "The image: not an image of a known format"),
        ("page.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "The image: not an image of a known format"),
        ("bomb.png", bomb(), "The image: 8000 x 8000 pixels; at most 50,000,000 pixels are read"),
    ],
)
def test_what_is_no_picture_is_answered_in_one_sentence(demo, name, content, sentence):
    visitor, folder = demo
    caption, others, problem, tiles = visitor.ask(content, "run", name=name)
    assert problem.startswith(sentence) and "\n" not in problem and str(folder) not in problem
    assert (caption, others, tiles) == ("", "", []) and "Traceback" not in (folder / "log").read_text()


def test_what_the_page_would_never_send_is_answered_too(run, tmp_path):
    models = {"run": Model(*open_captioner(run, "cpu"))}
    (tmp_path / "a.png").write_bytes(noise(1))
    assert answer(models, None, "run", 3, 1).problem == "Upload a picture first."
    assert "no longer kept" in answer(models, tmp_path / "gone.png", "run", 3, 1).problem
    assert "There is no such model" in answer(models, tmp_path / "a.png", ["run"], 3, 1).problem
    for beam_size, captions in ((0, 1), (11, 1), (2.5, 1), ("3", 1), (float("nan"), 1), (3, 6), (3, None), (float("inf"), 1)):
        assert "must be a whole number from 1 to" in answer(models, tmp_path / "a.png", "run", beam_size, captions).problem
    assert len(answer(models, tmp_path / "a.png", "run", 2, 5).others.splitlines()) == 1  # no more than the beam


class Counting(BaseHTTPRequestHandler):
    hits = 0

    def do_GET(self):
        type(self).hits += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(noise(1))

    def log_message(self, *parts):
        pass


def test_neither_an_address_nor_a_file_that_was_not_uploaded_is_read(demo, tmp_path, run):
    visitor, folder = demo
    server = HTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}/a.png"
    (tmp_path / "a.png").write_bytes(noise(1))
    uploaded = visitor.upload(noise(1)).json()[0]
    named = [
        here,
        "http://example.com/a.png",
        "https://huggingface.co/a.png",
        "file:///etc/hostname",
        "/etc/hostname",
        str(tmp_path / "a.png"),
    ]
    named += [f"{Path(uploaded).parent}/../../../../../../../etc/hostname", str(folder / "log"), "\0", str(Path(uploaded).parent)]
    try:
        for path in named:
            for data in (
                (given(path), "run", 3, 1),
                ({"path": path}, "run", 3, 1),
                (given(uploaded), given(path), 3, 1),
                (given(uploaded), "run", [{"value": given(path)}], 1),
            ):
                assert visitor.join(*data).status_code == 403, data
            assert visitor.client.get(f"{visitor.api}/file={path}".replace("\0", "%00"), follow_redirects=True).status_code == 404, path
        assert visitor.client.get(f"{visitor.api}/file={uploaded}").content == noise(1)
        with_url = given(uploaded) | {"url": here}  # the page sends one; it is not looked at
        assert visitor.join(with_url, "run", 3, 1).status_code == 200
        for route in (
            f"proxy={here}",
            "run/caption",
            "call/caption",
            "component_server",
            "process_recording",
            "vibe-code",
            "deep_link",
            "runs",
        ):
            for method in ("GET", "POST"):
                assert visitor.client.request(method, f"{visitor.api}/{route}").status_code == 404, route
        assert [visitor.client.get(f"{visitor.address}/{page}").status_code for page in ("monitoring", "docs")] == [404, 404]
    finally:
        server.shutdown()
    asked = re.findall(r"^ASKED (.*)$", (folder / "log").read_text(), flags=re.MULTILINE)
    assert Counting.hits == 0 and asked and not [its for its in asked if "127.0.0.1" not in its], asked


def test_more_than_ten_megabytes_are_refused_before_they_are_read(demo):
    visitor, folder = demo
    assert visitor.upload(b"x" * 10_100_000).status_code == 413
    many = [("files", (f"{number}.png", b"x" * 4_000_000)) for number in range(3)]
    assert visitor.client.post(f"{visitor.api}/upload", files=many).status_code == 413
    assert visitor.client.post(f"{visitor.api}/upload", content=iter([b"x"])).status_code == 411
    asked = {"data": ["x" * 200_000], "fn_index": visitor.function, "session_hash": "x"}
    assert visitor.client.post(f"{visitor.api}/queue/join", json=asked).status_code == 413
    assert not [file for file in (folder / "tmp").rglob("*") if file.is_file() and file.stat().st_size > 1_000_000]


def test_an_upload_is_of_one_file(demo):
    visitor, folder = demo
    for pad in (0, 70_000):  # in one message of the server, and in several
        many = [("files", (f"{number}.png", noise(number) + b"x" * pad)) for number in range(3)]
        before = sum(file.is_file() for file in (folder / "tmp").rglob("[0-9].png"))
        assert visitor.client.post(f"{visitor.api}/upload", files=many).status_code == 413
        assert sum(file.is_file() for file in (folder / "tmp").rglob("[0-9].png")) == before
    assert "Traceback" not in (folder / "log").read_text()


def test_the_oldest_uploads_make_room_but_none_of_the_last_minute_or_of_the_page(tmp_path):
    now = time.time()
    for number, age in enumerate((9000, 500, 400, 300, 30, 20)):
        file = tmp_path / str(number) / "a.png"
        file.parent.mkdir()
        file.write_bytes(b"x")
        os.utime(file, (now - age, now - age))

    def left():
        return [int(path.name) for path in sorted(tmp_path.iterdir())]

    assert tidied(tmp_path, 6 * BLOCK, now - 1000) == 6 * BLOCK and left() == [0, 1, 2, 3, 4, 5]
    assert tidied(tmp_path, 5 * BLOCK - 1, now - 1000) == 4 * BLOCK and left() == [0, 3, 4, 5]
    assert tidied(tmp_path, 0, now - 1000) == 3 * BLOCK and left() == [0, 4, 5]


def test_what_is_let_in_between_two_looks_at_the_folder_is_counted(tmp_path, monkeypatch):
    looks = []
    monkeypatch.setattr(gate, "tidied", lambda *given: looks.append(given) or 0)
    monkeypatch.setattr(gate, "MAX_KEPT", 3 * BLOCK)
    monkeypatch.setattr(gate.time, "monotonic", lambda: 100.0)

    async def let_in():
        its = gate.Gate(None, tmp_path, lambda question: True)  # type: ignore[arg-type]
        return [await its.has_room(1) for _ in range(4)]

    assert asyncio.run(let_in()) == [True, True, True, False] and len(looks) == 1


def test_a_question_that_the_page_would_not_ask_is_refused_without_a_word_in_the_log(demo):
    visitor, folder = demo
    path = visitor.upload(noise(1)).json()[0]
    for data in ((), (given(path),), ("x", "run", 3, 1), ([given(path)], "run", 3, 1), ({"path": path, "size": "x"}, "run", 3, 1)):
        assert visitor.join(*data).status_code == 422, data
    for number in (999, "x", None, [1]):
        asked = {"data": [given(path), "run", 3, 1], "fn_index": number, "session_hash": "x"}
        assert visitor.client.post(f"{visitor.api}/queue/join", json=asked).status_code == 422
    assert "Traceback" not in (folder / "log").read_text() and path not in (folder / "log").read_text()


def test_every_path_in_a_request_is_found():
    assert list(paths_in({"data": [{"path": "a", "x": {"path": ["b"]}}, [[{"path": "c"}]], {"path": None}]})) == ["a", ["b"], "c"]


def test_no_model_is_called_by_its_path(run, tmp_path, monkeypatch):
    from captioning.build import demo as module

    shown = []
    monkeypatch.setattr(module, "serve", lambda models, *_, **__: shown.extend(models))
    copies = [shutil.copytree(run, tmp_path / part / run.name) for part in ("a", "b")]
    module.show([run, *copies], None, host="127.0.0.1", port=1, device="cpu")
    assert shown == ["run", "run (2)", "run (3)"]


def test_what_cannot_be_shown_is_said_in_one_line(demo, run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for options, sentence in [
        (["--run", str(run), "--run", str(run), "--run", str(run)], "is the same run twice"),
        (["--run", str(run), "--port", "0"], "--port 0: must be from 1 to 65535"),
        (["--run", str(run), "--examples", str(tmp_path / "empty")], "holds no picture"),
        (["--run", str(tmp_path)], "not a run directory"),
        (["--run", str(run), "--port", demo[0].address.rpartition(":")[2]], "cannot be listened to there (Address already in use)"),
    ]:
        with pytest.raises(SystemExit) as exit:
            captioning_command(["demo", *options])
        error = capsys.readouterr().err
        assert exit.value.code == 2 and sentence in error and error.count("\n") == 1, error


def test_in_a_browser_a_picture_is_captioned_and_no_other_host_is_asked(chromium, demo, run, tmp_path):
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).parent / "axe.min.js"
    visitor, _ = demo
    captioner, _ = open_captioner(run, "cpu")
    (tmp_path / "a.png").write_bytes(noise(4))
    best = captioner([captioner.prepare(captioner.read(noise(4)))], Asked())[0][0]
    tab = chromium.new_page(viewport={"width": 375, "height": 800})
    heard, asked = [], []
    tab.on("console", lambda message: message.type == "error" and heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(visitor.address)
    tab.locator("#examples button").first.click()  # a test image of the run's data
    tab.wait_for_selector("#picture img[src*='file=']")
    tab.get_by_role("button", name="Remove Image").click()
    tab.set_input_files("#picture input[type=file]", tmp_path / "a.png")
    tab.wait_for_selector("#picture img[src*='a.png']")
    tab.get_by_role("button", name="Submit").click()
    tab.wait_for_function("document.querySelector('#caption textarea').value")
    assert tab.input_value("#caption textarea") == best.description
    tab.wait_for_function(f"document.querySelectorAll('#looked img').length == {len(best.caption.split())}")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375
    tab.evaluate(axe.read_text())
    found = tab.evaluate("axe.run()")
    assert [its["id"] for its in found["violations"] if its["impact"] != "minor"] == [] and len(found["passes"]) > 20
    others = [url for url in asked if not url.startswith((visitor.address, "data:", "blob:"))]
    assert heard == [] and others == [] and asked
    tab.close()


# What is published


@pytest.fixture(scope="module")
def published(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "folder"
    publish(run, folder, kind="model", name="tiny", license="mit", overwrite=False)
    return folder


def test_what_is_published_captions_as_the_run(run, published):
    for pattern in (noise(5), noise(6, 50)):
        said = []
        for path in (run, published / "run"):
            captioner, _ = open_captioner(path, "cpu")
            said.append(captioner([captioner.prepare(captioner.read(pattern))], Asked(candidates=2))[0])
        assert said[0] == said[1]


def test_what_is_published_names_nothing_of_this_machine_and_holds_no_more_than_is_needed(published, run, drawings):
    files = {str(file.relative_to(published)) for file in published.rglob("*") if file.is_file()}
    assert {name for name in files if not name.startswith("captioning/")} == {
        *("README.md", "app.py", "requirements.txt", ".gitattributes", "run/config.yaml", "run/env.json", "run/vocabulary.json"),
        *("run/best/model.safetensors", "run/best/state.json", "run/best/manifest.json"),
    }
    assert "captioning/LICENSE" in files and not [name for name in files if "__pycache__" in name]
    local = [ROOT.resolve(), Path.home(), run.parent, drawings, drawings.parent, socket.gethostname()]
    assert str(drawings) in (run / "config.yaml").read_text()
    for name in files:
        content = (published / name).read_bytes()
        assert not [its for its in local if len(str(its)) > 5 and str(its).encode() in content], name


def test_of_a_path_only_the_last_part_is_published():
    for word, left in {
        **{"/home/me/weights.pth": "weights.pth", "../photos/": "photos", "~/data": "data", "~": ".", "/": ".", "..": ".", "": ""},
        **{"C:\\Users\\me\\x.pt": "x.pt", "runs/a=b-s1": "a=b-s1", "captioning.search.Beam": "captioning.search.Beam", "none": "none"},
    }.items():
        assert blank(word) == left
    assert blanked({"/home/me/a.pt": ["/home/me/b", 3]}) == {"a.pt": ["b", 3]}


def test_of_a_command_no_part_of_a_path_is_published():
    config = {"data": {}, "run": "", "seed": 1, "a": {}}
    for command, left in {
        "/home/me/train.py data=own data.root=/home/me/x +a.b=~/x hydra/launcher=joblib -m seed=1,2 run=runs/x": "train.py data=own "
        "data.root=... +a.b=... hydra/launcher=joblib -m seed=1,2 run=...",
        "train.py data.files=[/home/me/a,b] run=C:\\Users\\me run=..": "train.py data.files=... run=... run=...",
        "train.py run=/home/Jane Doe/runs/x": "",
        "train.py run=/home/Jane Doe=x/runs": "",
        "train.py data.files=[/home/me/a, /home/me/b]": "",
        "/home/Jane Doe/train.py seed=1": "",
        "": "",
    }.items():
        assert blank_command(command, config) == left


def test_the_hub_reads_the_card_with_the_metrics_and_their_signatures(published, run):
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard import metadata_load

    card = ModelCard((published / "README.md").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert {its.metric_type: its.metric_args["signature"] for its in card.data.eval_results} == metrics["signatures"]
    assert all(its.metric_value == pytest.approx(metrics[its.metric_type], abs=1e-6) for its in card.data.eval_results)
    assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == ("mit", "image-to-text", "captioning")
    assert metadata_load(published / "README.md")["model-index"][0]["name"] == "tiny"
    assert all(f"| `{text.replace('|', chr(92) + '|')}` |" in card.text for text in metrics["signatures"].values())
    assert not re.search(r"{{|}}|{%|\bNone\b(?! of)", card.text.replace("{{The captioning authors}}", ""))


def test_a_space_has_a_card_of_its_own_and_a_run_without_evaluation_no_figures(finished, tmp_path):
    from huggingface_hub.repocard import metadata_load

    said = publish(finished, tmp_path / "space", kind="space", name=None, license=None, overwrite=False)
    about = metadata_load(tmp_path / "space" / "README.md")
    assert about["sdk"] == "gradio" and about["app_file"] == "app.py" and about["title"] == "finished" and "license" not in about
    assert f"gradio=={about['sdk_version']}\n" in (tmp_path / "space" / "requirements.txt").read_text()
    text = (tmp_path / "space" / "README.md").read_text()
    assert "No figure is given" in text and "not stated by who published it" in text
    assert "no metrics" in said[0] and "no license" in said[1]


def test_only_what_was_published_before_is_replaced(run, published, tmp_path):
    folder = shutil.copytree(published, tmp_path / "folder")
    (folder / ".git").mkdir()
    (folder / "examples").mkdir()
    (tmp_path / "other" / "run").mkdir(parents=True)
    for unwilling, sentence in [
        (folder, "--overwrite replaces it"),
        (tmp_path / "other", "holds run, which was not published there"),
        (run, "is the run itself"),
    ]:
        with pytest.raises(UserError, match=sentence):
            publish(run, unwilling, kind="model", name=None, license=None, overwrite=unwilling != folder)
    (folder / "captioning" / "old.py").write_text("")
    publish(run, folder, kind="model", name=None, license=None, overwrite=True)
    assert list((tmp_path / "other").rglob("*")) == [tmp_path / "other" / "run"]
    assert (folder / ".git").is_dir() and (folder / "examples").is_dir() and not (folder / "captioning" / "old.py").exists()
    assert (folder / ".gitattributes").read_text() == (published / ".gitattributes").read_text()
    assert "# run\n" in (folder / "README.md").read_text() and not list(folder.glob(".publishing*"))


def test_nothing_is_published_beside_what_would_be_pushed_with_it(run, published, tmp_path):
    own = tmp_path / "photos"
    own.mkdir()
    (own / "me.jpg").write_bytes(noise(1))
    ours = shutil.copytree(published, tmp_path / "ours")
    (ours / "passwords").write_text("")
    theirs = shutil.copytree(published, tmp_path / "theirs")
    (theirs / "app.py").write_text(f"print('this is no demo of captioning publish')\n{MARK}\n")
    for folder, name in ((own, "me.jpg"), (ours, "passwords"), (theirs, "README.md, app.py")):
        before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
        for overwrite in (False, True):
            with pytest.raises(UserError, match=f"holds .*{name}.*, which was not published there"):
                publish(run, folder, kind="model", name=None, license=None, overwrite=overwrite)
        assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*")}


def test_any_name_gives_a_program_python_reads_and_commands_of_plain_words(run, tmp_path):
    for number, name in enumerate(("dogs 🐶", "my dogs & cats; ls", "a \"b\" \\ 'c'")):
        folder = tmp_path / str(number)
        said = publish(run, folder, kind="model", name=name, license=None, overwrite=False)
        tree = ast.parse((folder / "app.py").read_text())
        assert name in [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        command = re.search(r"`hf download (.*)`", (folder / "README.md").read_text())
        assert command and re.fullmatch(r"USER/([\w.-]+) --local-dir \1", command[1], re.ASCII), command
        assert command[1].split()[0] in said[-1]


def test_the_attributes_of_a_clone_stay_as_they_are(run, tmp_path):
    rule = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
    file = tmp_path / ".gitattributes"
    assert with_rule(file) == rule
    for before, after in {b"*.bin -text": b"*.bin -text\n" + rule, b"\xff\r\n": b"\xff\r\n" + rule, b"a\n" + rule: b"a\n" + rule}.items():
        file.write_bytes(before)
        assert with_rule(file) == after
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / ".gitattributes").symlink_to(file)
    with pytest.raises(UserError, match="is a link"):
        publish(run, tmp_path / "clone", kind="model", name=None, license=None, overwrite=False)
    assert file.read_bytes() == b"a\n" + rule and [path.name for path in (tmp_path / "clone").iterdir()] == [".gitattributes"]


def test_a_copy_that_captions_otherwise_is_not_published(run, tmp_path, monkeypatch):
    from captioning.build import publish as module

    whole = module.copy_run

    def with_another_transform(path, new):
        whole(path, new)
        text = (new / "config.yaml").read_text()
        assert "size: 32" in text
        (new / "config.yaml").write_text(text.replace("size: 32", "size: 48"))

    monkeypatch.setattr(module, "copy_run", with_another_transform)
    with pytest.raises(UserError, match="captions otherwise"):
        publish(run, tmp_path / "folder", kind="model", name=None, license=None, overwrite=False)
    assert list((tmp_path / "folder").iterdir()) == []


def test_the_hub_would_take_every_file(published):
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects

    files = [str(file.relative_to(published)) for file in published.rglob("*") if file.is_file()]
    assert list(filter_repo_objects(files, ignore_patterns=DEFAULT_IGNORE_PATTERNS)) == files
    for name in files:
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=published / name)  # refuses what may not be committed
    assert "*.safetensors filter=lfs" in (published / ".gitattributes").read_text()


ALONE = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
sys.path[0], sys.argv = ".", ["app.py"]
try:
    runpy.run_path("app.py", run_name="__main__")
finally:
    files = (module.__file__ for name, module in sys.modules.items() if name.partition(".")[0] == "captioning")
    print("FROM", *files, sep="\\n", flush=True)
"""


def needed(names: set[str]) -> set[str]:
    """Distributions of these names, and all that they bring."""
    found, open_ends = set(), list(names)
    while open_ends:
        name = re.split(r"[^\w.-]", open_ends.pop())[0].lower().replace("_", "-")
        try:
            its = distribution(name)
        except PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            open_ends += [line for line in its.requires or [] if "extra ==" not in line]
    return found


def test_the_published_folder_runs_by_itself_on_its_requirements_and_leaves_nothing_behind(published, run, tmp_path):
    folder, port = shutil.copytree(published, tmp_path / "folder"), free_port()
    stated = needed(set((folder / "requirements.txt").read_text().split()))
    missing = {module for module, its in packages_distributions().items() if not {name.lower().replace("_", "-") for name in its} & stated}
    missing -= {"captioning", "_distutils_hack", "_virtualenv"}
    assert {"pytest", "tensorboard", "scipy"} <= missing and "gradio" not in missing
    code = ALONE.format(missing=missing)
    with served(tmp_path / "served", port, "-c", code, cwd=folder, GRADIO_SERVER_PORT=str(port)) as (process, address):
        captioner, _ = open_captioner(run, "cpu")
        best = captioner([captioner.prepare(captioner.read(noise(7)))], Asked())[0][0]
        assert Visitor(address).ask(noise(7), "tiny")[0] == best.description
        assert list((tmp_path / "served" / "tmp").iterdir())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert list((tmp_path / "served" / "tmp").iterdir()) == []
    used = (tmp_path / "served" / "log").read_text().split("FROM\n")[1].split()
    assert len(used) > 20 and all(Path(file).resolve().is_relative_to(folder) for file in used), used
