"""Broken pictures and decompression bombs: refused in one sentence, soon, and counted; never a crash, never a wait."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.pictures import BOMBS, KINDS, damaged, seeds, write

SECONDS = 2.0  # a broken picture
BOMB_SECONDS, BOMB_MIB = 0.05, 20.0
READER = """
import json, re, resource, sys, time
from pathlib import Path
from captioning.data.images import read_image
from captioning.errors import UserError
def peak():
    try:
        return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 ** (1 + (sys.platform == "darwin"))
read_image(Path(sys.argv[1]))  # a good one of the same format: what is loaded once is not counted
for name in sys.argv[2:]:
    print(json.dumps({"begun": name}), flush=True)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # what importing took is forgotten: the peak is what there is now
    except OSError:
        pass
    before, begun, reason = peak(), time.perf_counter(), None
    try:
        read_image(Path(name))
    except UserError as error:
        reason = str(error)
    except BaseException as error:
        reason = f"!{type(error).__name__}: {error}"
    seconds = time.perf_counter() - begun
    print(json.dumps({"name": name, "reason": reason, "seconds": seconds, "mib": peak() - before}), flush=True)
"""


class Read(NamedTuple):
    """What a process of its own said of a picture."""

    reason: str | None  # None: it was read. With an exclamation mark: what was raised is no UserError
    seconds: float
    mib: float


def read_apart(good: Path, pictures: list[Path], seconds: float) -> dict[Path, Read]:
    """Each picture read in a process of its own kind: a crash or a hang of Pillow's C takes that one, and the next goes on after it."""
    result: dict[Path, Read] = {}
    left = list(pictures)
    while left:
        command = [sys.executable, "-c", READER, str(good), *map(str, left)]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=20 + seconds * len(left) / 8, cwd=Path(__file__).parents[2]
            )
            said, fate = ended.stdout, f"!ended with {ended.returncode}"
        except subprocess.TimeoutExpired as error:
            said, fate = (error.stdout or b"").decode(), "!hangs"
        lines = [json.loads(line) for line in said.splitlines() if line.endswith("}")]
        result |= {Path(its["name"]): Read(its["reason"], its["seconds"], its["mib"]) for its in lines if "name" in its}
        begun = [Path(its["begun"]) for its in lines if "begun" in its]
        if not begun:
            raise RuntimeError(f"the reader did not start: {fate}")
        if begun[-1] not in result:
            result[begun[-1]] = Read(fate, seconds if "hangs" in fate else 0.0, 0.0)
        left = [path for path in left if path not in result]
    return result


def broken_images(folder: Path, kinds: int = 20, truncations: int = 200, flips: int = 500) -> Outcome:
    """Kinds of damage, files cut short, and files with a byte changed. Passed: refused in a sentence or read (the
    kinds: refused), within two seconds, and,
    over the folder of all of them, counted by `data.broken=skip` exactly where reading refuses."""
    made = [write(folder / name, content) for name, content in damaged(kinds, truncations, flips).items()]
    good = write(folder / "good.jpg", seeds()[0][1])
    read = read_apart(good, made, SECONDS)
    skipped = skipped_by_policy(folder, [path for path in made if read[path].seconds < SECONDS and "!" not in str(read[path].reason)[:1]])
    passed, slowest, crashes, hangs, uncounted, failed = 0, 0.0, 0, 0, 0, []
    for path in made:
        its = read[path]
        plain = its.reason is None or (not its.reason.startswith("!") and "\n" not in its.reason and path.name in its.reason)
        counted = (path.name in skipped) == (its.reason is not None)
        crashes += not plain and "hangs" not in str(its.reason)
        hangs += its.seconds > SECONDS or "hangs" in str(its.reason)
        uncounted += not counted
        slowest = max(slowest, its.seconds)
        good_answer = plain and counted and its.seconds <= SECONDS and not (path.name.startswith("kind-") and its.reason is None)
        passed += good_answer
        failed += [] if good_answer else [f"{path.name} ({its.reason})"]
    refused = sum(its.reason is not None for its in read.values())
    note = f"{refused} refused, {len(made) - refused} read; slowest {1000 * slowest:.0f} ms, "
    note += f"{crashes} crashes, {hangs} hangs, {uncounted} miscounted"
    note += f"; not as it must be: {', '.join(failed[:3])}" if failed else ""
    return Outcome(f"broken images: {min(kinds, len(KINDS))} kinds, {truncations} truncations, {flips} byte flips", len(made), passed, note)


def skipped_by_policy(folder: Path, made: list[Path]) -> set[str]:
    """Names of the images that `data.broken=skip` leaves out of a data set of all these and one good picture."""
    import torch

    from captioning.build.pictures import read_splits
    from captioning.cache.key import CacheSettings
    from captioning.data.records import Record
    from captioning.data.settings import Data
    from captioning.data.transforms import Transform
    from captioning.training.distributed import World

    records = [Record(path.name, path, ["a caption"], "made line", [1]) for path in [*made, folder / "good.jpg"]]
    data = Data(lambda: {"train": records}, Transform(zoom=1.0), str(folder), broken="skip")  # zoom=1: every pixel is read, as above
    with redirect_stdout(io.StringIO()):
        _, broken = read_splits(data, CacheSettings(str(folder / "cache")), World(torch.device("cpu")), "train")
    return set(broken["train"].reasons)


def bombs(folder: Path) -> Outcome:
    """Small files that declare or unpack to gigabytes, one of each format. Passed: refused in a sentence with the number of
    pixels that are read, within 50 ms, and without 20 MiB. Memory is the growth of the peak resident size of a process that has
    read a good picture."""
    good = {name: write(folder / f"good.{name}", content) for name, content in seeds()}
    passed, slowest, most = 0, 0.0, 0.0
    made = {name: write(folder / f"bomb.{name}", content) for name, content in BOMBS.items()}
    for name, path in made.items():
        (its,) = read_apart(good[name], [path], 10.0).values()
        refused = its.reason is not None and not its.reason.startswith("!") and "at most 50,000,000 pixels are read" in its.reason
        passed += refused and its.seconds < BOMB_SECONDS and its.mib < BOMB_MIB
        slowest, most = max(slowest, its.seconds), max(most, its.mib)
    sizes = f"files of {min(map(size_of, made.values())):,} to {max(map(size_of, made.values())):,} bytes"
    return Outcome(
        "decompression bombs", len(made), passed, f"slowest {1000 * slowest:.1f} ms, peak resident size +{most:.1f} MiB; {sizes}"
    )


def size_of(path: Path) -> int:
    return path.stat().st_size
