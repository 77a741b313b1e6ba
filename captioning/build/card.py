"""The card of a published run: the front matter that the Hugging Face Hub reads, and a text made of what the run knows of itself."""

import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import captioning
from captioning.analysis.plots import name_of
from captioning.build.evaluation import read_evaluated
from captioning.build.report import node_in_words, parameters
from captioning.build.runs import read_config, read_env
from captioning.build.schema import locate
from captioning.data.vocabulary import Vocabulary
from captioning.errors import UserError
from captioning.training import checkpoint

TASK = "image-to-text"
ENGLISH = ("shapes", "flickr", "coco", "karpathy")  # readers of data sets that are captioned in it


def rendered(template: str, content: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("captioning.build"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(f"{template}.jinja").render(
        content | {"gradio": version("gradio"), "captioning": captioning.__version__}
    )


def slug(name: str) -> str:
    """The name in an address of the Hub, which a shell reads as one word."""
    return "-".join(re.findall(r"\w+(?:[.-]\w+)*", name, re.ASCII))[:96].rstrip("-.") or "run"


def card(run: Path, copy: Path, *, kind: str, name: str, license: str | None) -> tuple[str, list[str]]:
    """-> README.md, and notes of what it lacks. copy: the run without paths; it says what stands in the text. run: it was evaluated."""
    from huggingface_hub import EvalResult, ModelCardData, SpaceCardData

    config, env, notes = read_config(copy), read_env(copy), []
    try:
        metrics = read_evaluated(run).metrics
    except UserError as error:
        metrics = {}
        notes.append(f"the card has no metrics: {error}")
    if license is None:
        notes.append("the card names no license: --license ID")
    scores = {key: metrics[key] for key in metrics.get("signatures", {})}
    data = config["data"]["reader"]["_target_"].rpartition(".")[2]
    tags = ["image-captioning", "captioning", "pytorch"]
    if kind == "space":
        python = ".".join(platform.python_version_tuple()[:2])
        about: Any = SpaceCardData(
            title=name, sdk="gradio", sdk_version=version("gradio"), python_version=python, app_file="app.py", license=license, tags=tags
        )
    else:
        results = [
            EvalResult(
                task_type=TASK,
                dataset_type=data,
                dataset_name=data,
                dataset_split=metrics["split"],
                metric_type=key,
                metric_name=name_of(key),
                metric_value=round(value, 6),
                metric_args={"signature": metrics["signatures"][key]},
            )
            for key, value in scores.items()
        ]
        about = ModelCardData(
            language="en" if data.startswith(ENGLISH) else None,
            license=license,
            library_name="captioning",
            tags=tags,
            pipeline_tag=TASK,
            model_name=name,
            eval_results=results or None,
        )
    content = {
        "name": name,
        "slug": slug(name),
        "kind": kind,
        "license": license,
        "data": data,
        "config": config,
        "env": env,
        "parts": {part: node_in_words(config[part]) for part in ("encoder", "decoder", "loss", "optimizer", "scheduler")},
        "attends": locate(config["decoder"]["_target_"], "decoder._target_").attends,
        "words": len(Vocabulary.load(copy / "vocabulary.json")),
        "parameters": parameters(copy),
        "state": checkpoint.load_state(copy / "best"),
        "metrics": metrics,
        "search": node_in_words(metrics["search"]) if metrics else "",
        "scores": [(name_of(key), f"{value:.4f}", metrics["signatures"][key]) for key, value in scores.items()],
    }
    return f"---\n{about.to_yaml()}\n---\n\n{rendered('README.md', content)}", notes
