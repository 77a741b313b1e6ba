"""Laws of an export: it captions as the run does, and needs nothing but its folder and a runtime."""

import json
import random
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import DECODERS, DIMS, ROOT, opinionated
from PIL import Image
from torch import nn

from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.errors import UserError
from captioning.models.caption_model import CaptionModel
from captioning.models.decoders.recurrent import RecurrentDecoder
from captioning.models.encoders import Encoder, TorchvisionEncoder
from captioning.models.features import ImageFeatures
from captioning.search import Beam

onnx, onnxruntime, _ = (pytest.importorskip(name) for name in ("onnx", "onnxruntime", "onnxscript"))

from captioning.build import export as job  # noqa: E402
from captioning.export import check, portable, quantize  # noqa: E402
from captioning.export.folder import Trained, settings_of, write  # noqa: E402
from captioning.export.graphs import trace  # noqa: E402

SIZE = 8
FEW = ["lstm-init-2", "rnn-par-1", "attention-gru", "adaptive"]


class Patches(Encoder):
    """Four cells, and a vector of another size."""

    def __init__(self):
        super().__init__()
        self.dims, self.cells, self.whole = DIMS, nn.Conv2d(3, DIMS.grid, 4, stride=4), nn.Linear(DIMS.grid, DIMS.pooled)

    def forward(self, images):
        grid = self.cells(images).flatten(2).transpose(1, 2)
        return ImageFeatures(grid, self.whole(grid.mean(dim=1)))


def model_with(decoder):
    return CaptionModel(opinionated(Patches()), decoder).eval()


def is_foreign(content):
    """Names a file of this machine."""
    return any(str(place).encode() in content for place in (ROOT, Path(torch.__file__).parents[1], Path(portable.__file__).parents[2]))


@cache
def traced(name):
    model = model_with(opinionated(DECODERS[name]()))
    for parameter in model.parameters():
        parameter.data *= 0.5  # a saturated cell forgets the order of words, and captions tie
    return model, trace(model, SIZE)


def written(folder, graphs, kind="onnx", words=5):
    folder.mkdir(parents=True)
    run = Trained("run", "0", Vocabulary(f"w{i}" for i in range(words)), Transform(size=SIZE), Beam(2, max_length=6))
    write(folder, graphs, run, kind=kind, int8=False)
    return portable.Captioner(folder, threads=1)


def assert_captions_are_the_models(model, captioner):
    pixels = torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 3
    for images, width in [(1, 1), (1, 3), (5, 1), (5, 3)]:
        expected = model.generate(pixels[:images], Beam(width, width, max_length=8))
        its = portable.Beam(width, width, max_length=8)
        found = its(captioner.step, captioner.begin(pixels[:images].numpy()))
        assert found.tokens.tolist() == expected.tokens.tolist()
        np.testing.assert_allclose(found.scores, expected.scores, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FEW)
def test_the_graphs_of_a_decoder_caption_as_the_model(name, tmp_path):
    model, graphs = traced(name)
    assert_captions_are_the_models(model, written(tmp_path / "out", graphs))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DECODERS if name not in FEW])
def test_the_graphs_of_every_decoder_caption_as_the_model(name, tmp_path):
    model, graphs = traced(name)
    assert_captions_are_the_models(model, written(tmp_path / "out", graphs))
    assert_captions_are_the_models(model, written(tmp_path / "torch", graphs, "torch"))


@pytest.mark.parametrize("name", ["rnn-par-1", "attention-gru"])
def test_torch_programs_caption_as_the_model_and_hold_no_weight_twice(name, tmp_path):
    model, graphs = traced(name)
    assert_captions_are_the_models(model, written(tmp_path / "out", graphs, "torch"))
    weights = [set(torch.export.load(tmp_path / "out" / f"{part}.pt2").state_dict) for part in ("begin", "step")]
    assert all(weights) and not set.intersection(*weights)


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_an_export_names_no_file_of_this_machine(kind, tmp_path):
    _, graphs = traced("attention-gru")
    written(tmp_path / "out", graphs, kind)
    for file in [path for path in (tmp_path / "out").rglob("*") if path.is_file()]:
        assert not is_foreign(file.read_bytes()), file.name
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as parts:
                assert not [name for name in parts.namelist() if is_foreign(parts.read(name))], file.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "grid", "more"),
    [
        ("mobilenet_v2", "features", {}),
        ("resnet50", "layer4", {"style": "caffe"}),
        ("densenet121", "features.norm5", {}),
        ("squeezenet1_1", "features", {}),
        ("efficientnet_b0", "features", {}),
        ("vgg16", "block5_conv3", {"pooled": "fc2"}),
    ],
)
def test_every_family_of_encoders_sees_the_same_in_its_graph(name, grid, more, tmp_path):
    torch.manual_seed(0)
    encoder = TorchvisionEncoder(name, grid, weights="none", **more).eval()
    decoder = opinionated(RecurrentDecoder(encoder.dims, 9, cell="gru", injection="par", hidden_size=7, embedding_size=6))
    model = CaptionModel(encoder, decoder).eval()
    captioner = written(tmp_path / "out", trace(model, 96))
    pixels = torch.randn(9, 3, 96, 96)  # more than the encoder takes at once
    with torch.inference_mode():
        expected = decoder.init_state(encoder(pixels)).memory[0].numpy()
    found = captioner.begin(pixels.numpy()).memory[0]
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


class Chain(NamedTuple):
    memory: tuple  # (B, M, V) logits
    place: torch.Tensor  # (R,)


def chain(images, words, seed):
    """A language whose next logits depend on the image and on all words so far, for tensors and for arrays."""
    table = torch.randn(images, 97, words, generator=torch.Generator().manual_seed(seed)) * 2

    def step(token, state):
        place = (state.place * 31 + token * 7 + 1) % 97
        image = torch.arange(len(token)) // (len(token) // len(state.memory[0]))
        return state.memory[0][image, place], Chain(state.memory, place)

    def array_step(token, state):
        place = (state.moving[0][..., 0] * 31 + token * 7 + 1) % 97
        return state.memory[0][np.arange(len(token))[:, None], place], portable.State(state.memory, [place[..., None]])

    return (step, Chain((table,), torch.zeros(images, dtype=torch.long))), (
        array_step,
        portable.State([table.numpy()], [np.zeros((images, 1, 1), np.int64)]),
    )


def test_the_beam_on_arrays_equals_the_beam_on_tensors_whatever_its_settings():
    draws = random.Random(0)
    for seed in range(150):
        beam_size = draws.randint(1, 6)
        settings = {
            "beam_size": beam_size,
            "n_best": draws.randint(1, beam_size),
            "max_length": draws.randint(1, 14),
            "min_length": draws.choice([0, 0, 3]),
            "length_penalty": draws.choice([0.0, 0.7, 1.0]),
            "no_repeat_ngram": draws.choice([0, 0, 1, 2, 3]),
            "allow_unknown": draws.random() < 0.5,
        }
        ours, arrays = chain(draws.randint(1, 9), draws.choice([7, 12, 90]), seed)
        expected, found = Beam(**settings)(*ours), portable.Beam(**settings)(*arrays)
        said = expected.scores > -torch.inf  # where there is a caption at all
        assert (found.scores > -np.inf).tolist() == said.tolist(), settings
        assert found.tokens[said.numpy()].tolist() == expected.tokens[said].tolist(), settings
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4, err_msg=str(settings))


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory):
    """The folder of a run, as the command writes it."""
    out = tmp_path_factory.mktemp("exported") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(check, "ROUNDS", 1)
        lines = list(job.export(finished, out, kind="onnx", int8=False))
    assert "16 of 16" in lines[1] and not list(out.rglob("__pycache__"))
    return out


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder, draws = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, shape in {"wide.jpg": (300, 500, 3), "tall.png": (61, 33, 3), "clear.png": (40, 40, 4), "tiny.png": (3, 5, 3)}.items():
        Image.fromarray(draws.integers(0, 256, shape, np.uint8)).save(folder / name)
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    "transform",
    [
        Transform(size=32),
        Transform(size=50, fit="squash"),
        Transform(size=24, zoom=0.5, mean=(0.1, 0.5, 0.3), std=(0.7, 0.2, 1.0)),
        Transform(zoom=1),
    ],
)
def test_a_picture_is_prepared_bit_for_bit_as_in_training(transform, exported, photographs):
    captioner = portable.Captioner(exported)
    captioner.transform = json.loads(json.dumps(settings_of(transform)))
    for path in photographs:
        found = captioner.prepare(captioner.read(path))
        assert found.dtype == np.float32 and found.flags["C_CONTIGUOUS"]
        assert np.array_equal(found, transform(transform.read(path)).numpy()), path.name


ALONE = """
import runpy, sys
for name in ("torch", "torchvision", "hydra", "omegaconf", "pydantic", "onnx", "onnxscript", "matplotlib"):
    sys.modules[name] = None  # to import it raises ImportError
folder, *sys.argv = sys.argv[1:]
sys.path.insert(0, folder)  # as `python folder/caption.py` does
runpy.run_path(sys.argv[0], run_name="__main__")
import captioning
assert captioning.__file__.startswith(folder), captioning.__file__
"""


def alone(folder, *arguments, without="torch"):
    command = [sys.executable, "-c", ALONE.replace("torch", without, 1), str(folder), str(folder / "caption.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)


def test_the_folder_alone_captions_without_torch_as_the_run_does(exported, finished, photographs, tmp_path, capsys):
    from captioning.cli import main

    shutil.copytree(exported, tmp_path / "elsewhere")
    main(["caption", *map(str, photographs), "--run", str(finished)])
    result = alone(tmp_path / "elsewhere", *photographs)
    assert result.stderr == "" and result.stdout == capsys.readouterr().out and len(result.stdout.splitlines()) == len(photographs)


def test_the_folder_alone_names_a_broken_file_and_captions_the_others(exported, photographs, tmp_path):
    (tmp_path / "no.png").write_text("not a picture")
    result = alone(exported, tmp_path / "no.png", photographs[0], "--n-best", "2", "--json")
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "no.png: not an image" in result.stderr
    captions = json.loads(result.stdout)[str(photographs[0])]
    assert len(captions) == 2 and captions[0]["score"] >= captions[1]["score"]
    result = alone(exported, photographs[0], "--beam-size", "0")
    assert result.returncode == 2 and result.stderr == "error: beam_size=0: at least 1\n"
    result = alone(exported, photographs[0], without="onnxruntime")
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "pip install -r" in result.stderr


def test_many_pictures_at_once_get_the_captions_of_each_alone(exported, photographs):
    captioner = portable.Captioner(exported, threads=1)
    together = captioner.captions(photographs)
    assert [its[0].text for its in together] == [captioner.captions([path])[0][0].text for path in photographs]


def test_what_the_folder_says_of_its_graphs_is_so(exported):
    about = json.loads((exported / "export.json").read_text())
    for name in ("begin", "step"):
        session = onnxruntime.InferenceSession(exported / about[name]["file"])
        for side in ("inputs", "outputs"):
            its = [(value.name, value.shape) for value in getattr(session, f"get_{side}")()]
            assert its == [(value["name"], value["shape"]) for value in about[name][side]]


def test_a_damaged_graph_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    content = bytearray((tmp_path / "out" / "step.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "out" / "step.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"step\.onnx: damaged"):
        portable.Captioner(tmp_path / "out")
    (tmp_path / "out" / "begin.onnx").unlink()
    with pytest.raises(UserError, match=r"begin\.onnx: missing"):
        portable.Captioner(tmp_path / "out")
    for content, sentence in {
        "{}": "not an exported folder",
        "[]": "not an exported folder",
        '{"format": 1}': r"not a whole exported folder \(export.json: no files, vocabulary",
        '{"format": 2}': "exported in format 2",
    }.items():
        (tmp_path / "out" / "export.json").write_text(content)
        with pytest.raises(UserError, match=sentence):
            portable.Captioner(tmp_path / "out")


def test_settings_that_no_search_can_have_are_refused_in_a_sentence(exported, photographs):
    for name, value in (("no_repeat_ngram", -1), ("min_length", -1), ("length_penalty", float("nan")), ("length_penalty", float("inf"))):
        with pytest.raises(UserError, match=f"^{name}={value}: "):
            portable.Beam(**{name: value})
    result = alone(exported, photographs[0], "--no-repeat-ngram", "-1")
    assert result.returncode == 2 and result.stderr == "error: no_repeat_ngram=-1: at least 0\n" and result.stdout == ""


def export_of(*arguments):
    from captioning.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, arguments)])
    return ended.value.code


def test_what_cannot_be_exported_is_refused_in_a_sentence(finished, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("")
    for arguments, reason in {
        (finished, "--format", "torch", "--int8"): "--int8: is for --format onnx",
        (finished, "--out", tmp_path / "mine"): "holds something else",
        (finished, "--out", tmp_path / "file"): "is a file",
        (tmp_path, "--out", tmp_path / "new"): "not a run directory",
    }.items():
        assert export_of(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and reason in error and error.count("\n") == 1
    monkeypatch.setattr(job, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert export_of(finished, "--out", tmp_path / "new") == 2
    assert "--format onnx: needs onnxscript" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"] and not (finished / "export-onnx").exists()
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_folder_that_lacks_a_file_is_not_put_in_place(finished, tmp_path, monkeypatch):
    from captioning.export import folder

    monkeypatch.setattr(check, "latency", lambda *_: check.Latency(1, 1.0, 1.0))
    monkeypatch.setattr(folder, "PARTS", [part for part in folder.PARTS if part != "data/formats.py"])
    with pytest.raises(UserError, match="caption by itself"):
        list(job.export(finished, tmp_path / "out", kind="onnx", int8=False))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [check.Parity(16, 3, 0.5), RuntimeError("wrong shape"), KeyboardInterrupt()])
def test_a_failed_export_leaves_the_one_before(failure, finished, exported, monkeypatch):
    def compare(*_):
        if isinstance(failure, BaseException):
            raise failure
        return failure

    monkeypatch.setattr(check, "compare", compare)
    monkeypatch.setattr("captioning.export.graphs.trace", lambda *_: None)
    monkeypatch.setattr("captioning.export.folder.write", lambda folder, *_, **__: shutil.copytree(exported, folder, dirs_exist_ok=True))
    before = (exported / "export.json").stat().st_mtime_ns
    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else UserError):
        list(job.export(finished, exported, kind="onnx", int8=False))
    assert (exported / "export.json").stat().st_mtime_ns == before and [path.name for path in exported.parent.iterdir()] == ["out"]


def test_an_export_takes_the_place_of_the_one_before(finished, exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "out")
    (tmp_path / "out" / "stale").write_text("")
    monkeypatch.setattr(check, "latency", lambda *_: check.Latency(1, 1.0, 1.0))
    monkeypatch.setattr("captioning.export.graphs.trace", lambda *_: None)
    monkeypatch.setattr("captioning.export.folder.write", lambda folder, *_, **__: shutil.copytree(exported, folder, dirs_exist_ok=True))
    list(job.export(finished, tmp_path / "out", kind="onnx", int8=False))
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not (tmp_path / "out" / "stale").exists()


@pytest.fixture
def copies(exported, monkeypatch):
    """The command writes a copy of a whole export, in no time."""
    monkeypatch.setattr(check, "latency", lambda *_: check.Latency(1, 1.0, 1.0))
    monkeypatch.setattr("captioning.export.graphs.trace", lambda *_: None)
    monkeypatch.setattr("captioning.export.folder.write", lambda folder, *_, **__: shutil.copytree(exported, folder, dirs_exist_ok=True))


def test_an_export_removes_nothing_but_the_export_in_its_place(finished, copies, tmp_path):
    for name in ("out.new", "out.before", ".out-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.tex").write_text("years")
    for _ in range(2):
        list(job.export(finished, tmp_path / "out", kind="onnx", int8=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out-", "out", "out.before", "out.new"]
    assert len(list(tmp_path.rglob("thesis.tex"))) == 3
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "export.json").write_text('{"of": "another program"}')
    with pytest.raises(UserError, match="holds something else"):
        list(job.export(finished, tmp_path / "theirs", kind="onnx", int8=False))


def test_a_link_is_followed_however_often_and_stays(finished, copies, tmp_path):
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    for _ in range(2):
        (tmp_path / "disk" / "out" / "begin.onnx").unlink(missing_ok=True)
        list(job.export(finished, tmp_path / "link", kind="onnx", int8=False))
        assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "out" / "begin.onnx").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["out"]


def test_the_folder_one_is_in_is_refused_in_a_sentence(finished, tmp_path, monkeypatch, capsys):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    for out in (".", "..", "/"):
        assert export_of(finished, "--out", out) == 2
        assert capsys.readouterr().err.startswith(f"error: --out {out}: is the folder that the command runs in")


def test_weights_in_8_bits_take_half_and_hardly_change_the_logits(exported, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "LEAST", 2**8)
    captioner, near, sizes = portable.Captioner(exported, threads=1), [], []
    for name in ("begin", "step"):
        file = Path(shutil.copy(exported / f"{name}.onnx", tmp_path))
        sizes.append(weights_in(file))
        quantize.quantize(file)
        sizes.append(weights_in(file))
        near.append(portable.load_graph(file, 1))
    assert sizes[1] < sizes[0] / 2 and sizes[3] < sizes[2] / 2  # of weights as small as these, scales and biases are a part
    pixels = np.stack([captioner.prepare(captioner.read(path)) for path in photographs])
    exact = captioner.begin(pixels)
    logits = captioner.step(np.full((len(pixels), 1), 1), exact)[0]
    captioner.first, captioner.next = near
    found = captioner.step(np.full((len(pixels), 1), 1), captioner.begin(pixels))[0]
    assert 0 < np.abs(found - logits).max() < 0.05 * np.abs(logits).max()


def weights_in(file):
    return sum(onnx.numpy_helper.to_array(weight).nbytes for weight in onnx.load(file).graph.initializer)


@pytest.mark.parametrize(("kind", "attributes", "axis"), [("MatMul", {}, 1), ("Gemm", {}, 1), ("Gemm", {"transB": 1}, 0), ("Conv", {}, 0)])
def test_every_output_channel_has_a_scale_of_its_own(kind, attributes, axis, tmp_path, monkeypatch):
    """One channel a million times the others leaves them as they were."""
    from onnx import TensorProto, helper, numpy_helper

    shape = (8, 8, 1, 1) if kind == "Conv" else (8, 8)
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    np.moveaxis(weight, axis, 0)[3] *= 1e6
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8, 1, 1] if kind == "Conv" else [2, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node(kind, ["x", "w"], ["y"], **attributes)
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    file = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    given = np.random.default_rng(1).normal(size=[its.dim_value for its in x.type.tensor_type.shape.dim]).astype(np.float32)
    exact = portable.load_graph(file, 1)(given)[0]
    monkeypatch.setattr(quantize, "LEAST", 1)
    quantize.quantize(file)
    near = portable.load_graph(file, 1)(given)[0]
    others = np.delete(np.arange(8), 3)
    assert 0 < np.abs(near - exact)[:, others].max() < 0.1


def test_the_check_sees_another_model(exported, finished):
    from captioning.build.runs import load_run

    run, captioner = load_run(finished, torch.device("cpu")), portable.Captioner(exported, threads=1)
    assert check.compare(run.model, run.transform, run.vocabulary, captioner, Beam()).holds
    with torch.no_grad():
        run.model.decoder.words.out.bias[4:] += torch.arange(len(run.vocabulary) - 4) * 0.5  # type: ignore[union-attr]
    assert not check.compare(run.model, run.transform, run.vocabulary, captioner, Beam()).holds


def test_the_files_in_the_folder_are_the_packages(exported):
    root = Path(portable.__file__).parents[1]
    files = [path for path in (exported / "captioning").rglob("*.py")]
    assert len(files) == 7 and all(path.read_bytes() == (root / path.relative_to(exported / "captioning")).read_bytes() for path in files)
