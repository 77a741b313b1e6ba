"""What an evaluation leaves in a folder (metrics, scores, captions, references and candidates, as JSON), and reading it again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.errors import UserError
from captioning.metrics.results import Result
from captioning.training.evaluate import Evaluation


class Evaluated(NamedTuple):
    metrics: dict[str, Any]  # metrics, what the captions look like, split, search, signatures
    result: Result
    captions: dict[str, str]
    references: dict[str, list[str]]


def write(folder: Path, evaluation: Evaluation, references: Mapping[str, Sequence[str]], about: Mapping[str, Any]) -> None:
    """about: stands in metrics.json too. UserError where nothing can be written."""
    texts = {"captions": evaluation.captions, "references": references}
    if any(len(its) > 1 for its in evaluation.candidates.values()):
        texts["candidates"] = evaluation.candidates
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics", "candidates"):  # without metrics.json nothing is there: it comes last
            (folder / f"{name}.json").unlink(missing_ok=True)
        for name, content in texts.items():
            (folder / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        evaluation.result.save(folder / "scores.json")
        metrics = evaluation.metrics | dict(about) | {"signatures": evaluation.result.signatures}
        (folder / "metrics.json.new").write_text(json.dumps(metrics, indent=1) + "\n")
        (folder / "metrics.json.new").rename(folder / "metrics.json")
    except OSError as error:
        raise UserError(f"out={folder}: cannot be written ({error.strerror})") from None


def read(folder: Path, command: str = "") -> Evaluated:
    """command: what makes it. UserError where there is no whole evaluation."""
    command = command or f"python eval.py run={folder}"
    if not (folder / "metrics.json").is_file() or not (folder / "scores.json").is_file():
        raise UserError(f"{folder}: not evaluated yet (no scores.json): {command}")
    try:
        metrics, captions, references = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("metrics", "captions", "references")
        )
        return Evaluated(metrics, Result.load(folder / "scores.json"), captions, references)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: its evaluation cannot be read ({error}): {command}") from None
