"""The programs as people run them, and every command of the README."""

import fnmatch
import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CNN, ROOT, SMALL, TINY
from PIL import Image
from torch.distributed.run import get_args_parser

from benchmarks.__main__ import ROWS
from benchmarks.reliability import ROWS as FAULTS
from benchmarks.serving import ALONE
from benchmarks.serving import ROWS as SERVING
from captioning import cli, commands
from captioning.analysis import results
from captioning.build import program as program_module
from captioning.build.compose import CONFIGS, as_dict, composed
from captioning.build.schema import check
from captioning.cli import main as captioning_command
from captioning.data.annotations import table

README = (ROOT / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
COMMANDS = [
    line.split("#")[0].strip()
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith(("make", "#"))
]


def program(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_documents_is_understood(command, mine, monkeypatch):
    understand(shlex.split(command), monkeypatch)


def understand(words, monkeypatch):
    """What a command line asks for is there, and its values are allowed; nothing is run."""
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "torchrun":
        launch = get_args_parser().parse_args(words[1:])  # exits where torchrun would
        words = ["python", launch.training_script, *launch.training_script_args]
        assert words[1] == "train.py"
    script = next((word for word in words if word in ("train.py", "eval.py")), None)
    if script:
        assert words[0] == "python"
        given = words[words.index(script) + 1 :]
        if "--help" in given:
            return
        if "--cfg" in given:  # Hydra's own: --cfg job, -p NODE
            given = [word for word in given if "=" in word]
        overrides = [word.split(",")[0] if "-m" in words and "{" not in word else word for word in given if word != "-m"]
        if script == "eval.py":
            monkeypatch.setattr(program_module, "matching", lambda pattern: [pattern.replace("*", "x")])
            overrides = [word.split(",")[0] for word in program_module.with_patterns(overrides) if word != "-m"]
        check(as_dict(composed(script.removesuffix(".py"), overrides)))
    elif words[0] == "captioning":
        seen = []
        for name in [name for name in vars(commands) if name.startswith("run_")]:
            monkeypatch.setattr(commands, name, seen.append)
        cli.main(words[1:])
        for overrides in (vars(options).get("overrides", []) for options in seen):
            check(as_dict(composed("train", overrides)))
    elif words[:3] == ["python", "-m", "pytest"]:
        assert all(Path(word).exists() for word in words[3:])
    elif words[:3] == ["python", "-m", "benchmarks.reliability"]:
        assert set(words[3:]) <= set(FAULTS)
    elif words[:3] == ["python", "-m", "benchmarks.serving"]:
        assert set(words[3:]) - {"--run", "runs/demo"} <= {*SERVING, *ALONE}
    elif words[:3] == ["python", "-m", "benchmarks"]:
        rows = [word for before, word in itertools.pairwise(words[2:]) if "--" not in before + word]
        assert all(fnmatch.filter(ROWS, row) for row in rows)
    else:
        assert words[0] in ("tensorboard", "curl", "docker", "pip") or words[1] == "runs/demo/export-onnx/caption.py"


def test_an_unreadable_picture_is_one_plain_sentence_from_a_worker_process_too(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "a.png").write_bytes((tmp_path / "images" / "a.png").read_bytes()[:45])
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,a dog,train\nb.png,a cat,val\nc.png,a cow,test\n")
    tiny = ["data=own", f"data.root={tmp_path}", "data.min_count=1", "data.workers=1", "data.transform.size=32", f"run={tmp_path / 'run'}"]
    result = program("train.py", *tiny, *CNN, *SMALL, "trainer=smoke")
    assert result.returncode == 2 and "a.png: cannot be decoded" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_the_readmes_commands_are_found():
    assert len(COMMANDS) >= 14 and any(command.startswith("captioning caption") for command in COMMANDS)


def test_every_choice_stands_in_the_readme():
    table_rows = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    expanded = re.sub(r"(\w*)\{([\w,]+)\}", lambda m: " ".join(m[1] + part for part in m[2].split(",")), table_rows)
    for group in ("data", "encoder", "decoder", "search", "loss", "optimizer", "scheduler", "trainer"):
        for path in (CONFIGS / group).glob("*.yaml"):
            assert re.search(rf"\b{path.stem}\b", expanded), f"{group}={path.stem}"


def test_a_run_is_trained_evaluated_and_used_by_the_programs_alone(drawings, tmp_path):
    run = tmp_path / "run"
    tiny = [*TINY, *CNN, *SMALL, "decoder.attention_size=8", f"data.root={drawings}", f"run={run}", "trainer=smoke"]
    assert program("train.py", *tiny).returncode == 0
    again = program("train.py", *tiny)
    assert again.returncode == 0 and "is finished" in again.stdout
    result = program("eval.py", f"run={run}", "split=test", "search=beam", "search.beam_size=2", "show=2")
    assert result.returncode == 0, result.stderr
    metrics, captions = (json.loads((run / name).read_text()) for name in ("metrics.json", "captions.json"))
    assert {
        "bleu1",
        "bleu2",
        "bleu3",
        "bleu4",
        "rouge_l",
        "cider",
        "length",
        "vocabulary_used",
        "distinct_captions",
        "unknown_rate",
    } <= metrics.keys()
    assert metrics["split"] == "test" and metrics["search"]["beam_size"] == 2 and 0 <= metrics["bleu4"] <= 1
    evaluated = results.read(run)
    assert evaluated.result.metrics.items() <= metrics.items() and evaluated.captions == captions
    assert metrics["signatures"]["bleu4"].startswith("bleu4|tok:") and "|vocab:" in metrics["signatures"]["perplexity"]
    folder = next(drawings.glob("40-8-8-32px*"))
    records = table(folder, "captions.jsonl")["test"]
    assert captions.keys() == {record.image_id for record in records}
    assert evaluated.references == {record.image_id: record.captions for record in records}
    assert f"reference: {records[0].captions[0]}" in result.stdout and records[0].image_id in result.stdout
    assert Image.open(run / "samples.png").width > 300
    shown = "warning: one caption is given" in result.stdout
    assert shown == (metrics["most_common_share"] > 0.2)  # two steps of training say the same of many pictures

    run.rename(tmp_path / "moved")  # self-sufficient: neither the data nor its place is needed
    picture, out = str(records[0].path), tmp_path / "where.png"
    command = ["-m", "captioning.cli", "caption", picture, "none.jpg", "--run", str(tmp_path / "moved"), "--beam-size", "2"]
    result = program(*command, "--attention", str(out), "--json")
    assert json.loads(result.stdout) == {picture: captions[records[0].image_id]}
    assert result.returncode == 2 and "none.jpg: no such file" in result.stderr and Image.open(out).width > 300


def test_captions_of_the_beam_come_with_their_log_p(finished, drawings, capsys):
    picture = next(drawings.glob("40-8-8-32px*/images/test-*.png"))
    captioning_command(["caption", str(picture), "--run", str(finished), "--beam-size", "4", "--n-best", "--json"])
    best = json.loads(capsys.readouterr().out)[str(picture)]
    assert len(best) == 4 and [item["log_p"] for item in best] == sorted((item["log_p"] for item in best), reverse=True)


def test_a_multirun_gives_each_member_its_directory(drawings, tmp_path, monkeypatch):
    tiny = [*TINY, *CNN, *SMALL, "trainer=smoke", "trainer.samples=0", f"data.root={drawings}"]
    command = [sys.executable, str(ROOT / "train.py"), "-m", *tiny, "decoder=lstm,rnn", "decoder.injection=init,merge", "seed=1,2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (tmp_path / "runs").iterdir()} - {"sweeps"}
    assert len(names) == 8 and all((tmp_path / "runs" / name / "best").exists() for name in names), names
    assert all(name.startswith("shapes-cnn-") and "injection=" in name and name[-3:] in ("-s1", "-s2") for name in names)


def test_check_data_ends_with_one_where_training_would_be_wrong(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8), (len(name), ord(name[0]), 0)).save(tmp_path / "images" / name)
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,a dog,train\na.png,,train\nb.png,a cat,val\nc.png,a cow,test\n")
    arguments = ["check-data", "data=own", f"data.root={tmp_path}", "data.min_count=1"]
    with pytest.raises(SystemExit) as exit:
        captioning_command(arguments)
    text = capsys.readouterr().out
    assert exit.value.code == 0 and "captions.csv line 3: no words in ''" in text and "train        1 images" in text
    (tmp_path / "images" / "b.png").write_bytes(b"broken")
    with pytest.raises(SystemExit) as exit:
        captioning_command(arguments)
    text = capsys.readouterr().out
    assert exit.value.code == 1 and "captions.csv line 4" in text and "1 of which would make training wrong" in text


def test_extract_fills_the_cache_that_cache_lists_and_removes(drawings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    command = ["extract", *TINY, f"data.root={drawings}", "encoder=resnet18", "encoder.weights=none", "cache.dtype=bf16"]
    captioning_command(command)
    text = capsys.readouterr().out
    assert text.count("extracting the features of") == 3 and "test: 8 images are in" in text and "are free" in text
    captioning_command(command)
    assert "extracting" not in capsys.readouterr().out
    captioning_command(["cache", "list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("whole" in line and "resnet18 layer4 mean, bf16" in line for line in lines[:3])
    captioning_command(["cache", "remove", lines[0].split()[0]])
    captioning_command(["cache", "remove", "--all"])
    captioning_command(["cache", "list"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 in ")


def test_doctor_names_versions_and_the_device(capsys):
    captioning_command(["doctor"])
    text = capsys.readouterr().out
    assert "torch " in text and "device: " in text


def test_a_mistake_shows_its_traceback_when_asked(monkeypatch, tmp_path):
    from captioning.errors import UserError

    monkeypatch.setenv("CAPTIONING_DEBUG", "1")
    with pytest.raises(UserError):
        captioning_command(["caption", "x.jpg", "--run", str(tmp_path)])
