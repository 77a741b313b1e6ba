"""`python train.py` on a few drawn pictures, in a process of its own: what the faults that need a whole run begin with."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.reader.train=40", "data.reader.val=8", "data.reader.test=8", "data.reader.size=32", "data.transform.size=32",
    "data.batch_size=16", "encoder.channels=16", "decoder=lstm", "decoder.hidden_size=16", "decoder.embedding_size=12",
    "device=cpu", "logger=none", "trainer.epochs=2",
]  # fmt: skip


def program(folder: Path, words: Sequence[str], command: Sequence[str] = (str(ROOT / "train.py"),)) -> subprocess.Popen[str]:
    """Started in `folder`, where its data, cache and runs are too; the first of a process group of its own."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "CAPTIONING_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # with another number the last digits differ
    }
    environment.pop("CAPTIONING_DEBUG", None)
    return subprocess.Popen(
        [sys.executable, *command, *words],
        cwd=folder,
        env=environment,
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def is_over(group: int) -> bool:
    """Whether none of the group's processes is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False
