"""Which pictures of a data set can be read: each is read once, as training will read it, and what was found is kept on disk."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import PIL
from PIL import Image

from captioning.cache.extract import alone
from captioning.cache.key import FORMAT, CacheSettings
from captioning.data.records import Record, Splits
from captioning.data.transforms import Transform
from captioning.errors import MachineError, UserError

SAFE_EVERY = 10.0  # seconds: a survey that is killed goes on from what was written
GROUP = 64  # pictures between two looks at the clock
NAMED = 5  # pictures in a message
GREY = (124, 116, 104)  # ImageNet's mean: nothing, to a network


class Broken(NamedTuple):
    """What a policy did to a split: `skip` left these images out, `replace` shows a grey picture in their place."""

    policy: str
    images: int  # of the split as it was read
    reasons: dict[str, str]  # image id -> why it cannot be read


class Survey:
    """What is known of the pictures that this transform reads. A picture is known by path, size in bytes and time of change."""

    def __init__(self, transform: Transform, root: str, settings: CacheSettings):
        reading = repr((FORMAT, PIL.__version__, transform.size, transform.zoom, os.path.abspath(root)))
        self.transform, self.folder = transform, Path(settings.dir) / "pictures"
        self.file = self.folder / f"{hashlib.sha256(reading.encode()).hexdigest()[:20]}.json"
        self.grey = self.folder / f"grey-{transform.size}.png"

    def take(
        self,
        paths: Sequence[Path],
        *,
        workers: int,
        say: Callable[[str], None],
        progress: Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]],
    ) -> dict[str, str]:
        """Path -> why it cannot be read, for those which cannot. Pictures that are known are not read again.

        Raises MachineError where the disk or the memory failed, and UserError where what was found cannot be kept.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with alone(self.file, say):
                return self.found(list(dict.fromkeys(paths)), workers, progress)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"{self.file}: cannot be written ({reason}); data.broken=error does without, cache.dir=DIR is elsewhere"
            ) from None

    def found(self, paths: list[Path], workers: int, progress: Callable) -> dict[str, str]:
        known, marks = self.load(), {path: mark_of(path) for path in paths}
        new = [path for path in paths if known.get(str(path), [])[:2] != marks[path]]
        result = {str(path): known[str(path)][2] for path in set(paths).difference(new)}
        if new:
            with ThreadPoolExecutor(max(1, workers)) as pool, progress("looking at pictures", len(new), 0) as advance:
                safe_at, left = time.monotonic(), iter(new)
                while group := list(islice(left, GROUP)):
                    for path, reason in zip(group, pool.map(self.reason, group)):
                        result[str(path)] = reason
                        if (mark := marks[path]) is not None:
                            known[str(path)] = [*mark, reason]
                    advance(len(group))
                    if time.monotonic() - safe_at >= SAFE_EVERY:
                        self.save(known)
                        safe_at = time.monotonic()
            self.save(known)
        return {path: reason for path, reason in result.items() if reason}

    def reason(self, path: Path) -> str | None:
        try:
            self.transform.read(path)
        except MachineError:
            raise
        except UserError as error:
            return str(error).removeprefix(f"{path}: ")
        return None

    def load(self) -> dict[str, list]:
        """Nothing where it is not there or damaged: then everything is looked at again."""
        try:
            known = json.loads(self.file.read_text(encoding="utf-8"))
            whole = isinstance(known, dict) and all(isinstance(its, list) and len(its) == 3 for its in known.values())
        except (OSError, ValueError):
            return {}
        return known if whole else {}

    def save(self, known: dict[str, list]) -> None:
        new = self.file.with_name(f"{self.file.name}.new")
        new.write_text(json.dumps(known), encoding="utf-8")
        os.replace(new, self.file)

    def draw_grey(self) -> None:
        """The picture that stands for broken ones: always the same bytes and time of change, as the keys of features have them."""
        new, size = self.grey.with_name(f"{self.grey.name}.{os.getpid()}"), self.transform.size
        try:
            Image.new("RGB", (size, size), GREY).save(new, "PNG")
            os.utime(new, (0, 0))
            os.replace(new, self.grey)
        except OSError as error:
            raise UserError(f"{self.grey}: cannot be written ({error.strerror}); allowed: data.broken=error, data.broken=skip") from None


def mark_of(path: Path) -> list[int] | None:
    """None for what cannot be opened: that may be mended without a trace, and is asked anew each time."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return None
    return [about.st_size, about.st_mtime_ns] if os.access(path, os.R_OK) else None


def apply(
    policy: str, splits: Splits, needed: Sequence[str], reasons: Mapping[str, str], grey: Path | None
) -> tuple[Splits, dict[str, Broken]]:
    """The splits without the broken pictures (`skip`), or with a grey one in their place, and what was done to each needed split.

    Raises UserError for a split of which nothing is left.
    """
    result, done = dict(splits), {}
    for split in needed:
        records = splits[split]
        broken = [record for record in records if str(record.path) in reasons]
        if len(broken) == len(records):
            first = reasons[str(records[0].path)]
            raise UserError(f"data.broken={policy}: none of {len(records)} {split} images can be read: {records[0].path}: {first}")
        result[split] = [kept for record in records if (kept := used(record, reasons, grey)) is not None]
        done[split] = Broken(
            policy, len({record.image_id for record in records}), {record.image_id: reasons[str(record.path)] for record in broken}
        )
    return result, done


def used(record: Record, reasons: Mapping[str, str], grey: Path | None) -> Record | None:
    if str(record.path) not in reasons:
        return record
    return None if grey is None else record._replace(path=grey)


def in_words(split: str, broken: Broken) -> str:
    """`data.broken=skip: 3 of 6000 train images cannot be read and are left out: a.jpg (truncated), ...`."""
    if not broken.reasons:
        return f"data.broken={broken.policy}: all {broken.images} {split} images can be read"
    named = ", ".join(f"{image_id} ({reason})" for image_id, reason in islice(broken.reasons.items(), NAMED))
    more = ", ..." if len(broken.reasons) > NAMED else ""
    fate = "are left out" if broken.policy == "skip" else "are shown as a grey picture"
    return f"data.broken={broken.policy}: {len(broken.reasons)} of {broken.images} {split} images cannot be read and {fate}: {named}{more}"
