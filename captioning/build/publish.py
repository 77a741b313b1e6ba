"""What `captioning publish` does: a folder that captions by itself, for the Hugging Face Hub, and names nothing of this machine."""

import json
import re
import shlex
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from PIL import Image

import captioning
from captioning.build.card import card, rendered, slug
from captioning.build.runs import read_config, read_env
from captioning.build.serving import open_captioner
from captioning.errors import UserError
from captioning.serving.captioner import Asked
from captioning.training import checkpoint

OURS = ("README.md", "app.py", "requirements.txt", "run", "captioning")
MARK = "# Written by `captioning publish`, which may replace it."  # the first line of app.py
GIT = (".git", ".gitattributes", ".gitignore")  # of a clone
EXAMPLES = "examples"  # of the user, once something is published there: the demo shows them
STATE = ("epoch", "step", "metrics")  # of a checkpoint, with what it is of
NOT_IN_CONFIG = ("hydra", "experiment", "hparams_search")  # that a command may set
NOT_NEEDED = ("__pycache__", "*.py[cod]", "configs")
RULE = b"*.safetensors filter=lfs diff=lfs merge=lfs -text"


def publish(run: Path, folder: Path, *, kind: str, name: str | None, license: str | None, overwrite: bool) -> list[str]:
    """-> What to say of it. Written aside and tried out first: DIR holds what captions as the run does, or is as it was."""
    name = name or run.resolve().name
    if not name.isprintable() or not name.strip():
        raise UserError(f"--name {name!r}: must be a line of text")
    refuse_others_files(run, folder, overwrite)
    attributes = with_rule(folder / ".gitattributes")
    if license is not None and not license.replace("-", "").replace(".", "").isalnum():
        raise UserError(f"--license {license}: must be a name of the Hub's list, as in mit, apache-2.0 or cc-by-nc-4.0")
    read_config(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".publishing-", dir=folder) as aside:
            new = Path(aside)
            copy_run(run, new / "run")
            copy_package(new / "captioning")
            text, notes = card(run, new / "run", kind=kind, name=name, license=license)
            (new / "README.md").write_text(text, encoding="utf-8")
            (new / "app.py").write_text(rendered("app.py", {"name": name, "literal": repr(name), "mark": MARK}), encoding="utf-8")
            (new / "requirements.txt").write_text(rendered("requirements.txt", {}), encoding="utf-8")
            refuse_other_captions(run, new / "run")
            (new / ".gitattributes").write_bytes(attributes)
            for part in (*OURS, ".gitattributes"):
                remove(folder / part)
                (new / part).rename(folder / part)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    size = sum(file.stat().st_size for part in OURS for file in [folder / part, *(folder / part).rglob("*")] if file.is_file())
    upload = f"hf upload USER/{slug(name)} {shlex.quote(str(folder))} . --repo-type {kind}"
    return [
        *notes,
        f"{folder}: {name} with its card and its demo, {size / 1e6:.1f} MB",
        f"try it: python {folder / 'app.py'}",
        f"push it: {upload}",
    ]


def refuse_others_files(run: Path, folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; a folder is needed")
    if folder.resolve() == run.resolve():
        raise UserError(f"{folder}: is the run itself; another folder is needed")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not set(there) - set(GIT):
        return
    try:
        is_ours = (folder / "app.py").read_text(encoding="utf-8").split("\n")[0] == MARK
    except (OSError, ValueError):
        is_ours = False
    foreign = [name for name in there if name not in (*GIT, *((*OURS, EXAMPLES) if is_ours else ()))]
    if foreign:
        named = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
        raise UserError(f"{folder}: holds {named}, which was not published there; give an empty folder or a clone")
    if not overwrite:
        raise UserError(f"{folder}: something is published there; --overwrite replaces it")


def with_rule(file: Path) -> bytes:
    """The attributes of git that are there, and ours. A clone of the Hub's has some already."""
    if file.is_symlink() or (file.exists() and not file.is_file()):
        raise UserError(f"{file}: is a link or a folder; a file is needed")
    try:
        before = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    lines = before.splitlines()
    if RULE in lines:
        return before
    return before + (b"\n" if lines and not before.endswith(b"\n") else b"") + RULE + b"\n"


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def copy_run(run: Path, new: Path) -> None:
    """What captioning needs: no optimizer, log or training data, and of paths the last part."""
    folder = checkpoint.chosen(run)
    if folder is None:
        raise UserError(f"run={run}: has no checkpoint yet")
    checkpoint.verify(folder, "model")
    about = read_env(run)
    (new / "best").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(blanked(read_config(run))), new / "config.yaml")
    about |= {
        "command": blank_command(str(about.get("command", "")), read_config(run)),
        "platform": str(about.get("platform", "")).partition("-")[0],
        "broken": {},
    }
    (new / "env.json").write_text(json.dumps(about, indent=1) + "\n")
    for name in about["files"]:
        shutil.copyfile(run / name, new / name)
    shutil.copyfile(folder / "model.safetensors", new / "best" / "model.safetensors")
    state = checkpoint.load_state(folder)
    its = state.get("progress", state)
    kept = {key: its[key] for key in STATE if key in its} | {"of": blanked(state.get("of", {}))}
    (new / "best" / "state.json").write_text(json.dumps(kept, indent=1))
    hashes = {file.name: checkpoint.sha256(file) for file in sorted((new / "best").iterdir())}
    (new / "best" / "manifest.json").write_text(checkpoint.manifest_text(hashes))


def blanked(content: Any) -> Any:
    """Settings without the paths in them."""
    if isinstance(content, dict):
        return {blanked(key): blanked(value) for key, value in content.items()}
    if isinstance(content, list):
        return [blanked(value) for value in content]
    return blank(content) if isinstance(content, str) else content


def blank(word: str) -> str:
    """`/home/me/weights.pth` -> `weights.pth`: who reads it shall know what it is, not where it lies."""
    plain = word.replace("\\", "/")
    if "/" not in plain and not plain.startswith(("~", "..")):
        return word
    parts = [part for part in plain.split("/") if part not in ("", ".", "..") and not part.startswith("~")]
    return parts[-1] if parts else "."


def blank_command(command: str, config: dict[str, Any]) -> str:
    """With `...` for values that may be paths. Its words were joined by spaces, and a path may have some: where any word is not certainly
    a setting of this run, nothing is left."""
    program, *words = command.split() or [""]
    said = [blank(program)]
    for word in words:
        setting = re.fullmatch(r"((?:\+\+?|~)?(\w+)[\w.@/]*=)(.*)", word)
        if setting and setting[2] in {*config, *NOT_IN_CONFIG}:
            is_plain = re.fullmatch(r"[\w.,:+\[\]-]*", setting[3]) and not setting[3].startswith(".")
            said.append(setting[1] + (setting[3] if is_plain else "..."))
        elif word in ("-m", "--multirun"):
            said.append(word)
        else:
            return ""
    return " ".join(said)


def copy_package(new: Path) -> None:
    """It is in no package index: the folder brings it, with its licence, and Python finds it beside app.py."""
    package = Path(captioning.__file__).parent
    shutil.copytree(package, new, ignore=shutil.ignore_patterns(*NOT_NEEDED))
    try:
        listed = [Path(str(file.locate())) for file in files("captioning") or [] if file.name == "LICENSE"]
    except PackageNotFoundError:
        listed = []
    licence = next((file for file in (package / "LICENSE", package.parent / "LICENSE", *listed) if file.is_file()), None)
    if licence is not None and not (new / "LICENSE").exists():
        shutil.copyfile(licence, new / "LICENSE")


def refuse_other_captions(run: Path, new: Path) -> None:
    """The copy is loaded and captions a few patterns: as the run does, to the last bit, or nothing is published."""
    draws = torch.Generator().manual_seed(0)
    patterns = [torch.randint(0, 256, (side, side, 3), generator=draws, dtype=torch.uint8).numpy() for side in (2, 5, 16)]
    asked, said = Asked(candidates=3), []
    for path in (run, new):
        captioner, _ = open_captioner(path, "cpu")
        pixels = [captioner.prepare(Image.fromarray(pattern).resize((256, 256))) for pattern in patterns]
        said.append([(its.caption, its.log_p) for each in captioner(pixels, asked) for its in each])
    if said[0] != said[1]:
        raise UserError(f"{run}: its copy captions otherwise than the run: was it being trained while it was copied?")
