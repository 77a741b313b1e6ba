"""Where a run's curves and pictures go: TensorBoard, or nowhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image


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
    """`tensorboard --logdir runs` shows curves, sample pictures with captions, and the hparams tab to sort a sweep in."""

    def open(self, folder: Path, step: int) -> None:
        """What an interrupted process had logged of `step` and later is hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: Image.Image, text: str) -> None:
        self.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
        self.writer.add_text(name, text, step)

    def settings(self, step: int, settings: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in settings.items()}
        self.writer.add_hparams(plain, {f"hparam/{name}": value for name, value in metrics.items()}, run_name=".", global_step=step)

    def flush(self) -> None:
        """What is logged is on its way to the disk: a checkpoint is never ahead of its curve."""
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
