"""Checkpoints with flipped bytes, cut short, of something else, or with code in them: found before anything of them is used."""

import io
import os
import pickle
import random
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.training import CNN, MODEST, Program, differences, finished
from captioning.errors import UserError

WORDS = [*MODEST, *CNN, "data.root=drawn", "logger=none", "trainer.samples=0"]
LSTM, MORE = "decoder=lstm", "trainer.epochs=3"  # of 2: the run would go on
FILES = [("last", name) for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")]
LIES = [(b'"epoch": 2,', b'"epoch": 3,'), (b'"together": 16', b'"together": 17')]  # flips of one bit, that say: finished; another batch
FILES += [("best", name) for name in ("model.safetensors", "state.json", "manifest.json")]


def damage(folder: Path, flips: int = 100, cuts: int = 20) -> Outcome:
    run, draws, problems = folder / "run", random.Random(0), {}
    finished(folder, [*WORDS, LSTM, "run=run"])
    finished(folder, [*WORDS, LSTM, MORE, "run=truth"])
    shutil.copytree(run, folder / "two")
    shutil.rmtree(run / "last.before")  # nothing to fall back to
    for number in range(flips):
        place, name = FILES[number % len(FILES)]
        with changed(run / place / name) as content:
            content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        problems[f"flip {number} in {place}/{name}"] = found(run, place, name)
        restore(run / place / name)
    for before, after in LIES:
        with changed(run / "last" / "state.json") as content:
            content[:] = content.replace(before, after, 1)
        problems[f"{before.decode()} -> {after.decode()}"] = found(run, "last", "state.json")
        restore(run / "last" / "state.json")
    for number in range(cuts + len(FILES)):
        place, name = FILES[number % len(FILES)]
        with changed(run / place / name) as content:
            del content[draws.randrange(len(content)) if number < cuts else 0 :]
        problems[f"{f'cut {number} of' if number < cuts else 'empty'} {place}/{name}"] = found(run, place, name)
        restore(run / place / name)
    others = {"architecture": (["decoder=gru"], "decoder.cell"), "vocabulary": ([LSTM, "data.min_count=30"], "vocabulary")}
    for what, (words, key) in others.items():
        finished(folder, [*WORDS, *words, f"run={key}"])
        for place in ("last", "best"):
            with replaced(run / place):
                shutil.copytree(folder / key / place, run / place)
                problems[f"wrong {what} in {place}"] = of_another(run, place, key)
    for number, (place, name) in enumerate([FILES[0], FILES[1], FILES[4], ("last", "extra.pt"), ("best", "extra.pkl")]):
        problems[f"pickle as {place}/{name}"] = pickled(folder, run, place, name, number)
    for _, name in FILES[:4]:
        problems[f"{name}, one before it"] = fallen_back(folder, name)
    wrong = [f"{name}: {', '.join(its)}" for name, its in problems.items() if its]
    note = f"{flips} flips, {cuts} cuts, {len(problems) - flips - cuts} others; code run: {len(list(folder.glob('proof-*')))}"
    return Outcome("damaged checkpoints", len(problems), len(problems) - len(wrong), "; ".join([note, *wrong[:9]]))


@contextmanager
def changed(file: Path) -> Iterator[bytearray]:
    content = bytearray(file.read_bytes())
    file.with_name(f"{file.name}.whole").write_bytes(content)
    yield content
    file.write_bytes(content)


def restore(file: Path) -> None:
    file.with_name(f"{file.name}.whole").rename(file)


@contextmanager
def replaced(folder: Path) -> Iterator[None]:
    whole = folder.rename(folder.with_name(f"{folder.name}.whole"))
    yield
    shutil.rmtree(folder)
    whole.rename(folder)


# What must hold


def refusal(run: Path, place: str) -> str:
    """What train.py says of `last`, or whoever loads a run of `best`; empty where it takes it."""
    from captioning.build.compose import as_dict, composed
    from captioning.build.jobs import Training
    from captioning.build.runs import load_run
    from captioning.training.trainer import Trainer

    words = [word.replace("data.root=drawn", f"data.root={run.parent / 'drawn'}") for word in WORDS]
    try:
        if place == "best":
            load_run(run, torch.device("cpu"))
        else:
            with redirect_stdout(io.StringIO()), patch.object(Trainer, "train_epoch", side_effect=Used):
                Training(as_dict(composed("train", [*words, LSTM, MORE, f"run={run}"]))).start()
    except UserError as error:
        return str(error)
    except Used:
        pass
    return ""


class Used(Exception):
    pass


def found(run: Path, place: str, name: str) -> list[str]:
    said = refusal(run, place)
    right = str(run / place) in said and (name in said or name == "manifest.json")
    return [] if right else [f"said {said!r}"]


def of_another(run: Path, place: str, key: str) -> list[str]:
    said = refusal(run, place)
    return [] if re.search(rf"{place}: is a checkpoint of {key}=.+, this run is of {key}=.+", said) else [f"said {said!r}"]


class Bomb:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch '{self.proof}'",)


def pickled(folder: Path, run: Path, place: str, name: str, number: int) -> list[str]:
    """Both kinds of pickles, under a manifest that says they are right; in a process as users start it."""
    from captioning.training import checkpoint

    problems = []
    for kind in ("torch", "plain"):
        proof = folder / f"proof-{number}-{kind}"
        with replaced(run / place):
            shutil.copytree(run / f"{place}.whole", run / place)
            torch.save({"state": Bomb(proof)}, run / place / name) if kind == "torch" else (run / place / name).write_bytes(
                pickle.dumps(Bomb(proof))
            )
            files = sorted(file for file in (run / place).iterdir() if file.name != "manifest.json")
            (run / place / "manifest.json").write_text(checkpoint.manifest_text({file.name: checkpoint.sha256(file) for file in files}))
            words = [*WORDS, LSTM, "run=taken"] if place == "last" else ["device=cpu", "run=taken", "split=val"]
            shutil.rmtree(folder / "taken", ignore_errors=True)
            shutil.copytree(run, folder / "taken", ignore=shutil.ignore_patterns("*.whole"))
            ended = Program(folder, [*words, *([MORE] if place == "last" else [])], name="train" if place == "last" else "eval").end()
        told = ended.code == 2 and f"{name}: holds no tensors" in ended.text.splitlines()[-1]
        ignored = ended.code == 0 and "extra" in name
        problems += [] if told or ignored else [f"exit code {ended.code}: {ended.text[-300:]}"]
        problems += ["its code was run"] if proof.exists() else []
    return problems


def fallen_back(folder: Path, name: str) -> list[str]:
    shutil.rmtree(folder / "taken", ignore_errors=True)
    shutil.copytree(folder / "two", folder / "taken")
    with changed(folder / "taken" / "last" / name) as content:
        content[len(content) // 2] ^= 4
    (folder / "taken" / "last" / f"{name}.whole").unlink()
    ended = Program(folder, [*WORDS, LSTM, MORE, "run=taken"]).end()
    if ended.code:
        return [f"exit code {ended.code}: {ended.text[-300:]}"]
    said = [
        line for line in ended.text.splitlines() if line.startswith("warning: taken/last: ") and "going on from the one before it" in line
    ]
    return ([] if len(said) == 1 else [f"said {ended.text[-300:]}"]) + differences(folder / "truth", folder / "taken")
