"""Small things every test may ask for. Nothing is downloaded; real data is found by FLICKR8K_ROOT or beside the checkout."""

import gc
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from captioning.models.decoders.adaptive import AdaptiveAttentionDecoder
from captioning.models.decoders.attention import SoftAttentionDecoder
from captioning.models.decoders.recurrent import RecurrentDecoder
from captioning.models.features import FeatureDims, ImageFeatures

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # begun in the background, the tests find it ignored, and so would their runs
ROOT = Path(__file__).resolve().parents[1]
DIMS, VOCABULARY = FeatureDims(grid=6, pooled=5), 9
TINY = ["data.reader.train=40", "data.reader.val=8", "data.reader.test=8", "data.reader.size=32", "data.transform.size=32",
        "data.batch_size=16", "logger=none", "device=cpu"]  # fmt: skip
CNN = ["encoder.channels=16"]
SMALL = ["decoder.hidden_size=16", "decoder.embedding_size=12"]

DECODERS = {
    f"{cell}-{injection}-{layers}": lambda cell=cell, injection=injection, layers=layers, **more: RecurrentDecoder(
        DIMS, VOCABULARY, cell=cell, injection=injection, layers=layers, hidden_size=7, embedding_size=6, **more
    )
    for cell in ("lstm", "gru", "rnn")
    for injection in ("init", "pre", "par", "merge", "pre_par", "add", "read")
    for layers in (1, 2)
}
DECODERS |= {
    f"attention-{cell}": lambda cell=cell, **more: SoftAttentionDecoder(
        DIMS, VOCABULARY, cell=cell, hidden_size=7, embedding_size=6, attention_size=5, **more
    )
    for cell in ("lstm", "gru")
}
DECODERS["adaptive"] = lambda **more: AdaptiveAttentionDecoder(DIMS, VOCABULARY, hidden_size=7, embedding_size=6, attention_size=5, **more)


@pytest.fixture(params=DECODERS)
def decoder(request):
    """Every decoder in eval mode, with weights large enough to have opinions."""
    return opinionated(DECODERS[request.param]())


@pytest.fixture(params=[name for name in DECODERS if name.startswith("a")])
def attending(request):
    """Every decoder that attends, and so has a time loop of its own."""
    return opinionated(DECODERS[request.param]())


def opinionated(module):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module.eval()


def lively(module):
    """BatchNorm with statistics: as it is made, it does nothing, and then it could be left out or applied twice unseen."""
    draws = torch.Generator().manual_seed(0)
    for norm in (part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        for value in (norm.running_var, norm.weight.data):
            value.copy_(torch.rand(value.shape, generator=draws) + 0.5)
        for value in (norm.running_mean, norm.bias.data):
            value.copy_(torch.randn(value.shape, generator=draws) / 2)
    return module


def features(images: int) -> ImageFeatures:
    draws = torch.Generator().manual_seed(1)
    return ImageFeatures(torch.randn(images, 4, DIMS.grid, generator=draws), torch.randn(images, DIMS.pooled, generator=draws))


def pytest_sessionfinish():
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def what_is_there_is_not_looked_through_again():
    """A run collects garbage when it begins; with all that hundreds of tests have imported, that would take seconds each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def drawings(tmp_path_factory) -> Path:
    """The root of drawn data sets, shared by all tests."""
    return tmp_path_factory.mktemp("drawings")


@pytest.fixture
def train(drawings, tmp_path, monkeypatch):
    """train(*overrides) -> the Trainer of `python train.py` with the tiny drawn data; not started."""
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))

    def build(*overrides: str, run: Path = tmp_path / "run"):
        from captioning.build.compose import as_dict, composed
        from captioning.build.jobs import Training
        from captioning.build.schema import check
        from captioning.training.distributed import open_world

        encoder = [] if any(word.startswith("encoder=") for word in overrides) else CNN
        tiny = [word for word in TINY if "reader" not in word] if any(word.startswith("data=") for word in overrides) else TINY
        config = as_dict(composed("train", [*tiny, *encoder, f"data.root={drawings}", f"run={run}", *overrides]))
        check(config)
        return Training(config).trainer(open_world("cpu"))

    return build


@pytest.fixture(scope="session")
def finished(drawings, tmp_path_factory) -> Path:
    """A run directory of two steps with attention."""
    from captioning.build.compose import as_dict, composed
    from captioning.build.jobs import Training

    run = tmp_path_factory.mktemp("runs") / "finished"
    overrides = [
        *TINY,
        *CNN,
        *SMALL,
        "decoder.attention_size=8",
        "trainer=smoke",
        f"data.root={drawings}",
        f"run={run}",
    ]
    Training(as_dict(composed("train", overrides))).start()
    return run


@pytest.fixture
def mine(tmp_path, monkeypatch) -> Path:
    """Where the files lie that the documents ask to save as `mine/...`, as a reader would have them: below the working directory."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        for name, text in re.findall(r"```(?:python|yaml)\n# (mine/\S+)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            with open(tmp_path / name, "a") as file:  # a page may go on with a file
                file.write(f"{text}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    monkeypatch.delitem(sys.modules, "dot", raising=False)
    return tmp_path / "mine"


@pytest.fixture(scope="session")
def evaluated_run(finished, tmp_path_factory) -> Path:
    """The finished run, evaluated."""
    from captioning.build.compose import composed
    from captioning.build.evaluation import evaluate

    path = shutil.copytree(finished, tmp_path_factory.mktemp("evaluated") / "run")
    evaluate(composed("eval", [f"run={path}", "split=test", "show=0", "device=cpu", "features=off"]))
    return path


@pytest.fixture(scope="module")
def chromium():
    """A real browser, with a camera that films a pattern."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[dev]'")
    camera = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", *camera]
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=arguments, timeout=60_000)
        yield browser
        browser.close()


def is_a_good_page(chromium, file: Path, scheme: str) -> None:
    """Says nothing in the console, asks for nothing, is no wider than a phone, shows its pictures, and axe finds nothing to mend."""
    axe = Path(pytest.importorskip("axe_playwright_python").__file__).parent / "axe.min.js"
    tab = chromium.new_page(viewport={"width": 320, "height": 600}, color_scheme=scheme)
    heard, asked = [], []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(file.as_uri())
    width = "document.documentElement.scrollWidth"
    assert tab.evaluate(width) <= 320
    tab.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert tab.evaluate(width) <= 320
    tab.evaluate("document.querySelectorAll('img').forEach(part => part.loading = 'eager')")
    tab.wait_for_function("[...document.images].every(picture => picture.complete && picture.naturalWidth > 0)")
    tab.evaluate(axe.read_text())
    found = tab.evaluate("axe.run()")
    assert [(broken["id"], broken["nodes"][0]["html"]) for broken in found["violations"]] == [] and len(found["passes"]) > 20
    tab.set_viewport_size({"width": 1280, "height": 800})
    assert tab.evaluate(width) <= 1280
    assert heard == [] and {url for url in asked if not url.startswith("data:")} == {file.as_uri()}
    tab.close()


def pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 9, 0, 0)).save(folder / name, format="JPEG")
    return folder


def flickr8k_root() -> Path:
    root = Path(os.environ.get("FLICKR8K_ROOT", ROOT.parent / "shared" / "flickr8k"))
    if not (root / "Flickr8k.token.txt").exists():
        pytest.skip("no Flickr8k here: set FLICKR8K_ROOT to the folder with Flickr8k.token.txt")
    return root


def real_weights(name: str) -> Path:
    path = Path(os.environ.get("CAPTIONING_WEIGHTS", ROOT.parent / "shared" / "weights")) / name
    if not path.exists():
        pytest.skip(f"no {name} here: set CAPTIONING_WEIGHTS to the folder that has it")
    return path
