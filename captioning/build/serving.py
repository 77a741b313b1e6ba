"""A run directory as a captioner, and what there is to say of it."""

from pathlib import Path
from typing import Any

from captioning.build.evaluation import digest_of
from captioning.build.runs import Run, load_run
from captioning.serving.captioner import Captioner
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
