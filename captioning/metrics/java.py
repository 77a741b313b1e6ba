"""METEOR and SPICE by the jars that come with pycocoevalcap: programs with a deadline that read a pipe and leave nothing behind."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from captioning.metrics.meteor import meteor_columns
from captioning.metrics.results import Columns
from captioning.metrics.tokenizer import tokenize

SECONDS = 1800  # COCO's 40,000 validation images take METEOR some minutes


class Unavailable(Exception):
    """The reason why a metric is left out, in a sentence."""


def java_columns(hypotheses: Sequence[str], references: Sequence[Sequence[str]], seconds: float = SECONDS) -> tuple[Columns, list[str]]:
    """What each image contributes to METEOR and SPICE, and why one or both are left out."""
    metrics: dict[str, Callable[..., Columns]] = {"METEOR": meteor, "SPICE": spice}
    columns, reasons = {}, []
    for name, metric in metrics.items():
        try:
            columns |= metric(hypotheses, references, seconds)
        except Unavailable as reason:
            reasons.append(f"{name} is left out: {reason}")
    return columns, reasons


def meteor(hypotheses: Sequence[str], references: Sequence[Sequence[str]], seconds: float) -> Columns:
    """METEOR 1.5 (Denkowski and Lavie 2014), tokens as all metrics have them. A newline inside a line would move all later ones."""
    plain = lambda text: " ".join(tokenize(text)).replace("|||", "")  # noqa: E731
    lines = [" ||| ".join(["SCORE", *map(plain, its), plain(text)]) for text, its in zip(hypotheses, references)]
    jar = package() / "meteor" / "meteor-1.5.jar"
    answer = run(["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"], "\n".join([*lines, ""]), seconds)
    try:
        return meteor_columns(np.array([line.split() for line in answer.splitlines()], dtype=np.float64).reshape(len(lines), -1))
    except ValueError:
        raise Unavailable(f"its answer cannot be read ({answer[:80]!r})") from None


def spice(hypotheses: Sequence[str], references: Sequence[Sequence[str]], seconds: float) -> Columns:
    """SPICE (Anderson et al. 2016). Its parser's models, 370 MB, are not part of pycocoevalcap and never downloaded here."""
    folder = package() / "spice"
    if missing := [
        name for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar") if not (folder / "lib" / name).exists()
    ]:
        raise Unavailable(f"{folder / 'lib'} lacks {' and '.join(missing)}; CoreNLP 3.6.0's distribution has them")
    plain = lambda text: " ".join(tokenize(text))  # noqa: E731
    texts = [{"image_id": i, "test": plain(text), "refs": [*map(plain, its)]} for i, (text, its) in enumerate(zip(hypotheses, references))]
    with tempfile.TemporaryDirectory() as place:
        given, out = Path(place, "in.json"), Path(place, "out.json")
        given.write_text(json.dumps(texts))
        arguments = ["-cache", place, "-out", str(out), "-subset", "-silent"]
        run(["-Xmx8G", "-jar", str(folder / "spice-1.0.jar"), str(given), *arguments], "", seconds, place)
        scores = {item["image_id"]: item["scores"]["All"]["f"] for item in json.loads(out.read_text())}
    return {"spice": np.nan_to_num(np.array([scores[i] for i in range(len(texts))], dtype=np.float64))}


def package() -> Path:
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise Unavailable("pycocoevalcap is not installed")
    return Path(spec.submodule_search_locations[0])


def run(arguments: Sequence[str], text: str, seconds: float, place: str | None = None) -> str:
    """What java prints, given this text."""
    java = shutil.which("java")
    if java is None:
        raise Unavailable("there is no java on the PATH")
    command = [java, "-Dfile.encoding=UTF-8", *arguments]
    try:
        ended = subprocess.run(command, input=text.encode(), capture_output=True, timeout=seconds, cwd=place)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"java took more than {seconds:.0f} s") from None
    if ended.returncode:
        last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise Unavailable(f"java ended with {ended.returncode} ({last[0]})")
    return ended.stdout.decode()
