"""Results: what each image contributes to the metrics, what any set of images scores, and a signature that says what was computed."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import captioning
from captioning.metrics.bleu import Statistics, bleu
from captioning.metrics.meteor import PARTS, meteor
from captioning.metrics.ngrams import LONGEST
from captioning.metrics.tokenizer import VERSION

MEANS = ("rouge_l", "cider", "spice")  # metrics that are means over images
JARS = {"meteor": "meteor-1.5", "spice": "spice-1.0"}  # whose implementation is not ours

Columns = dict[str, np.ndarray]
"""A number for each of C images, (C,): its part in the sums that the metrics are made of."""


def metrics_of(columns: Columns, times: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of R sets of images, each (R,); times (R, C) says how often each image is in each set, as in a bootstrap."""
    matches = np.stack([columns[f"matches{n + 1}"] for n in range(LONGEST)], axis=1)
    metrics = bleu(Statistics(matches, columns["length"], columns["reference_length"]).sums(times))
    images = np.maximum(1, times.sum(axis=1))
    metrics |= {name: times @ columns[name] / images for name in MEANS if name in columns}
    if PARTS[0] in columns:
        metrics["meteor"] = meteor(tuple(times @ columns[part] for part in PARTS))
    if "loss" in columns:
        loss = (times @ columns["loss"]) / np.maximum(1, times @ columns["words"])
        metrics |= {"loss": loss, "perplexity": np.exp(loss)}
    return metrics


class Result(NamedTuple):
    """What stands in `scores.json`: enough to score any resampling of the images, and to name the best and the worst."""

    image_ids: list[str]
    columns: Columns
    signatures: dict[str, str]  # of each metric

    @property
    def metrics(self) -> dict[str, float]:
        """Over all images."""
        every = np.ones((1, len(self.image_ids)), dtype=np.int64)
        return {name: float(value[0]) for name, value in metrics_of(self.columns, every).items()}

    def extended(self, columns: Columns, references: str) -> "Result":
        """With columns of more metrics. references: what the signatures say of them, from `about`."""
        every = self.columns | columns
        new = Result(self.image_ids, every, {}).metrics.keys() - self.signatures.keys()
        return Result(self.image_ids, every, self.signatures | signatures_of(sorted(new), references))

    def save(self, path: Path) -> None:
        columns = {name: column.tolist() for name, column in self.columns.items()}
        path.write_text(json.dumps({"signatures": self.signatures, "image_ids": self.image_ids, "columns": columns}) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Result":
        """ValueError for a file that is not one."""
        content = json.loads(path.read_text())
        try:
            image_ids, signatures = content["image_ids"], content["signatures"]
            columns = {name: np.array(column) for name, column in content["columns"].items()}
        except (KeyError, TypeError, AttributeError):
            raise ValueError("without image_ids, columns and signatures") from None
        if any(column.shape != (len(image_ids),) for column in columns.values()):
            raise ValueError("columns of different lengths")
        return cls(image_ids, columns, signatures)


def about(references: Sequence[Sequence[str]]) -> str:
    """The part of a signature that says against what: references an image, images, and a hash of the texts. Neither the images' names
    nor their order count."""
    counts = [len(texts) for texts in references]
    refs = f"{min(counts, default=0)}" + (f"-{max(counts)}" if len(set(counts)) > 1 else "")
    digest = hashlib.sha256(repr(sorted(sorted(texts) for texts in references)).encode()).hexdigest()
    return f"refs:{refs}|images:{len(counts)}|data:{digest[:8]}"


def signatures_of(metrics: Iterable[str], references: str, frequencies: str = "corpus") -> dict[str, str]:
    """`bleu4|tok:ptb-py-1|case:lc|refs:5|images:1000|data:5f0c1a9b|impl:captioning-0.1`: equal where values may be compared.

    references: from `about`. frequencies: where CIDEr's document frequencies come from.
    """
    extra = {"cider": f"|df:{frequencies}"}
    own = implementation()
    return {name: f"{name}|tok:{VERSION}|case:lc|{references}{extra.get(name, '')}|impl:{JARS.get(name, own)}" for name in metrics}


def implementation() -> str:
    return f"captioning-{'.'.join(captioning.__version__.split('.')[:2])}"
