"""A run directory as a captioner, and what there is to say of it."""

import argparse
import os
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from captioning.build.evaluation import digest_of
from captioning.build.runs import Run, load_run
from captioning.errors import UserError
from captioning.serving.captioner import Captioner
from captioning.serving.service import Limits
from captioning.training.distributed import find_device


def open_captioner(path: Path, device: str = "auto") -> tuple[Captioner, dict[str, Any]]:
    """The captioner, and what is said of its model to those who use it: no path of this machine is among it."""
    run = load_run(path, find_device(device))
    return Captioner(run.model, run.vocabulary, run.transform), about(run)


def about(run: Run) -> dict[str, Any]:
    import captioning

    names = {part: run.config[part]["_target_"].rpartition(".")[2] for part in ("encoder", "decoder")}
    names["encoder"] = run.config["encoder"].get("name", names["encoder"])
    return {
        "name": run.path.resolve().name,
        **names,
        "attends": run.model.decoder.attends,
        "words": len(run.vocabulary),
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "image_size": run.transform.size,
        "checkpoint": digest_of(run.path),
        "captioning": captioning.__version__,
    }


def limits_of(options: argparse.Namespace) -> Limits:
    names = {"deadline": "deadline", "queue": "queue", "batch": "batch", "images": "max_images", "megabytes": "max_megabytes"}
    try:
        return TypeAdapter(Limits).validate_python({name: getattr(options, given) for name, given in names.items()})
    except ValidationError as error:
        first = error.errors()[0]
        given = names[str(first["loc"][0])].replace("_", "-")
        raise UserError(f"--{given} {first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def read_key(file: Path | None) -> str | None:
    """Not from the command line, where every user of the machine can read it."""
    try:
        key = file.read_text().strip() if file else os.environ.get("CAPTIONING_API_KEY", "").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"--api-key-file {file}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if (file and not key) or not all("!" <= letter <= "~" for letter in key):
        raise UserError(
            f"{f'--api-key-file {file}' if file else 'CAPTIONING_API_KEY'}: must hold one key, of printable ASCII without spaces"
        )
    return key or None
