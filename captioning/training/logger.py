"""Where a run's curves and pictures go: TensorBoard, or nowhere."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from captioning.errors import UserError


class Logger(Protocol):
    def open(self, folder: Path, step: int) -> None: ...
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, name: str, picture: Image.Image, text: str) -> None: ...
    def settings(self, step: int, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class NoLogger:
    """Also what every rank but the first has."""

    def open(self, folder: Path, step: int) -> None: ...
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...
    def picture(self, step: int, name: str, picture: Image.Image, text: str) -> None: ...
    def settings(self, step: int, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class TensorBoardLogger:
    """`tensorboard --logdir runs` shows curves, sample pictures with captions, and the hparams tab to sort a sweep in.

    A thread of TensorBoard's writes them. Where it cannot, whoever logs next is told by a UserError.
    """

    def open(self, folder: Path, step: int) -> None:
        """What an interrupted process had logged of `step` and later is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        threading.excepthook = all_but_tensorboards
        with self.plain():
            self.writer = SummaryWriter(str(folder), purge_step=step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self.plain():
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Image.Image, text: str) -> None:
        with self.plain():
            self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
            self.writer.add_text(name, text, step)

    def settings(self, step: int, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in settings.items()}
        with self.plain():
            self.writer.add_hparams(plain, {f"hparam/{name}": value for name, value in metrics.items()}, run_name=".", global_step=step)

    def flush(self) -> None:
        """What is logged is on its way to the disk: a checkpoint is never ahead of its curve."""
        with self.plain():
            self.writer.flush()

    def close(self) -> None:
        with self.plain():
            self.writer.close()

    @contextmanager
    def plain(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: the curve cannot be written ({error.strerror or error}); the same command goes on") from None


def all_but_tensorboards(error: threading.ExceptHookArgs) -> None:
    """Tells of a thread's error, unless it is told by `plain`."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(error)
