"""The import rule: an arrow goes only from a higher layer to a lower one."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

LOWER = {  # layer: what it may import of this package, beside errors, kinds and randomness
    "data": {"data"},
    "search": set(),
    "sampling": {"search"},
    "metrics": {"metrics"},
    "models": {"models", "search"},
    "cache": {"cache", "data", "models"},
    "training": {"training", "data", "models", "metrics", "search", "sampling"},
    "analysis": {"analysis", "training", "data", "models", "metrics", "search"},
    "export": {"export", "data", "models", "search"},
    "serving": {"serving", "data", "models", "search", "analysis"},
    "errors": set(), "kinds": set(), "randomness": set(), "doctor": set(),
}  # fmt: skip
ANYONE = {"errors", "kinds", "randomness", ""}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_no_layer_imports_a_higher_one():
    for path in (ROOT / "captioning").rglob("*.py"):
        layer = path.relative_to(ROOT / "captioning").parts[0].removesuffix(".py")
        for name in imports(path):
            package, _, rest = name.partition(".")
            if package in ("train", "eval"):
                raise AssertionError(f"{path} imports an entry point")
            if package in ("hydra", "omegaconf"):
                assert layer in ("build", "cli"), f"{path} imports {name}"
            if package == "captioning" and layer in LOWER:
                assert rest.split(".")[0] in LOWER[layer] | ANYONE, f"{path} imports {name}"


def test_only_the_caption_model_knows_search_among_the_models():
    knowing = {path.name for path in (ROOT / "captioning" / "models").rglob("*.py") if "captioning.search" in imports(path)}
    assert knowing == {"caption_model.py"}


def test_only_the_transform_decides_how_pictures_are_read():
    """Training, caching and serving see the same pixels, and an exported folder too (test_export.py); check-data alone reads every pixel of
    every file."""
    knowing = {path.name for path in (ROOT / "captioning").rglob("*.py") if "captioning.data.images" in imports(path)}
    assert knowing == {"transforms.py", "check.py", "portable.py"}


HELP = """
import runpy, sys
sys.argv = [{name!r}, "--help"]
try:
    runpy.run_{kind}({name!r}, run_name="__main__")
except SystemExit:
    pass
assert not set("torch torchvision numpy PIL hydra omegaconf pydantic".split()) & sys.modules.keys()
"""


@pytest.mark.parametrize(("kind", "name"), [("module", "captioning.cli"), ("path", "train.py"), ("path", "eval.py")])
def test_help_comes_without_importing_what_is_slow(kind, name):
    result = subprocess.run([sys.executable, "-c", HELP.format(kind=kind, name=name)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {"captioning.cli": "check-data", "train.py": "optimizer.lr=", "eval.py": "run=DIR"}[name] in result.stdout


@pytest.mark.parametrize("name", ["train", "eval"])
def test_help_is_word_for_word_that_of_hydra(name):
    def printed(*arguments):
        return subprocess.run([sys.executable, f"{name}.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert printed("--help") == printed("-h") == printed("--help", f"--config-name={name}")  # with a second option Hydra answers


def test_a_choice_that_is_not_there_is_refused_without_importing_torch():
    code = "import sys, train; sys.argv = ['train.py', 'decoder=lstmm']\ntry: train.main()\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == "False\n" and "Did you mean lstm?" in result.stderr
