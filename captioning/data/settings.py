"""The settings of a data set, as `configs/data/` has them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from captioning.data.records import Splits
from captioning.data.transforms import Transform
from captioning.errors import UserError
from captioning.kinds import Count, Whole


@dataclass(frozen=True)
class Data:
    """
    root: where the data set lies.
    batch_size: captions in a batch.
    captions_together: so many captions of an image stand in one batch and share its encoder pass and attention keys; faster in
        fine-tuning and for large grids. The same gradient for a batch, but batches are less mixed.
    min_count: words rarer than this in the training captions become <unk>.
    max_length: words of a training caption beyond this are cut off.
    broken: an image that is missing or cannot be read ends the job (`error`), or all are looked at first and the broken ones are left out
        with their captions (`skip`) or shown as a grey picture (`replace`).
    """

    reader: Callable[[], Splits]
    transform: Transform
    root: str
    batch_size: Count = 64
    captions_together: Count = 1
    workers: Whole = 2
    min_count: Count = 5
    max_length: Count = 40
    broken: Literal["error", "skip", "replace"] = "error"

    def __post_init__(self) -> None:
        if self.captions_together > self.batch_size:
            raise ValueError(f"captions_together={self.captions_together} is more than batch_size={self.batch_size}")

    def read(self, *needed: str) -> Splits:
        """The splits; the images of the `needed` ones must exist and be captioned. Raises UserError naming the first that does not.

        Images that do not exist are left to a survey where `broken` asks for one: see `captioning/build/pictures.py`.
        """
        splits = self.reader()
        for split in needed:
            if not splits.get(split):
                there = ", ".join(name for name, records in splits.items() if records)
                raise UserError(f"split={split}: the data in {self.root} has no such images; allowed: {there}")
            missing = [record for record in splits[split] if not record.path.is_file()]
            if missing and self.broken == "error":
                first, count = missing[0].path, len(missing)
                raise UserError(
                    f"{first}: no such file, and so with {count} of {len(splits[split])} {split} images; see `captioning check-data`"
                )
            if bare := next((record for record in splits[split] if not any(map(str.strip, record.captions))), None):
                raise UserError(f"image {bare.image_id} of the {split} split has no caption: see `captioning check-data`")
        return splits
