"""Broken pictures and decompression bombs: refused in one sentence, soon, and counted; never a crash, never a wait."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import zlib
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from benchmarks.faults.outcome import Outcome

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
    draw = random.Random(0)
    whole = seeds()
    made = [write(folder / f"kind-{name}", content) for name, content in list(KINDS.items())[:kinds]]
    for number in range(truncations):
        name, content = draw.choice(whole)
        made.append(write(folder / f"cut-{number:03}.{name}", content[: draw.randrange(len(content))]))
    for number in range(flips):
        name, content = draw.choice(whole)
        place = draw.randrange(min(len(content), 600) if number % 2 else len(content))  # half of them in the header
        flipped = bytes([content[place] ^ 1 << draw.randrange(8)])
        made.append(write(folder / f"flip-{number:03}.{name}", content[:place] + flipped + content[place + 1 :]))
    good = write(folder / "good.jpg", whole[0][1])
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


def write(path: Path, content: bytes | str) -> Path:
    """A word instead of bytes says what else stands there than a file."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "folder":
        path.mkdir()
    elif content == "fifo":
        os.mkfifo(path)
    elif content == "device":
        path.symlink_to("/dev/zero")
    elif content == "circle":
        path.symlink_to(path.name)
    return path


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def scene(width: int = 64, height: int = 48) -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def seeds() -> list[tuple[str, bytes]]:
    """A whole picture of every format, by its ending."""
    image, exif = scene(), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    return [
        ("jpg", saved(image, "JPEG", exif=exif)),
        ("png", saved(image, "PNG", exif=exif)),
        ("webp", saved(image, "WEBP")),
        ("gif", saved(image, "GIF")),
        ("bmp", saved(image, "BMP")),
        ("tif", saved(image, "TIFF", compression="tiff_lzw")),
        ("progressive.jpg", saved(image, "JPEG", progressive=True)),
        ("cmyk.jpg", saved(image.convert("CMYK"), "JPEG")),
        ("palette.png", saved(image.quantize(16), "PNG", transparency=3)),
        ("moving.webp", saved(image, "WEBP", save_all=True, append_images=[scene(64, 48).transpose(Image.Transpose.ROTATE_180)])),
        ("deflate.tif", saved(image, "TIFF", compression="tiff_adobe_deflate")),
        ("deep.png", saved(Image.fromarray(np.arange(64 * 48, dtype=np.uint16).reshape(48, 64)), "PNG")),
    ]


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes, more: bytes = b"", bits: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", rows) + chunk(b"IEND")


def unpacking_to(size: int) -> bytes:
    """So many zeros, packed twice as fast as zlib.compress would."""
    packer = zlib.compressobj(1)
    block = bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.flush()


def gif(width: int, height: int) -> bytes:
    content = saved(scene(), "GIF")
    frame = content.index(b"\x2c", 13 + 3 * (2 << (content[10] & 7)))
    size = struct.pack("<HH", width, height)
    return content[:6] + size + content[10 : frame + 5] + size + content[frame + 9 :]


def bmp(width: int, height: int) -> bytes:
    content = saved(scene(), "BMP")
    return content[:18] + struct.pack("<ii", width, height) + content[26:]


def jpeg(width: int, height: int) -> bytes:
    content = saved(scene(), "JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]


def webp(width: int, height: int) -> bytes:
    """The frame is as it was, the canvas is not: it would be made before a frame is read."""
    content = saved(scene(), "WEBP", save_all=True, append_images=[scene().transpose(Image.Transpose.ROTATE_180)])
    place = content.index(b"VP8X") + 12
    return content[:place] + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3] + content[place + 6 :]


def tiff(width: int, height: int) -> bytes:
    """One strip of zeros, deflated."""
    data = zlib.compress(bytes(1 << 20))
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, height)]
    tags.append((279, 4, len(data)))
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def endless_jpeg() -> bytes:
    """The last scan of a progressive JPEG again and again: 75 bytes a time, and every pixel is visited."""
    content = saved(Image.new("L", (7000, 7000), 128), "JPEG", progressive=True, quality=50)
    return content[:-2] + content[content.rindex(b"\xff\xda") : -2] * 3000 + content[-2:]


BOMBS = {
    "png": png(20_000, 20_000, unpacking_to(20_000 * 2501), bits=1),
    "jpg": jpeg(65_000, 65_000),
    "gif": gif(65_535, 65_535),
    "bmp": bmp(60_000, -60_000),
    "webp": webp(13_000, 13_000),
    "tif": tiff(1 << 20, 1 << 20),
}
JPEG, PNG = saved(scene(), "JPEG"), saved(scene(), "PNG")
KINDS: dict[str, bytes | str] = {
    "empty.jpg": b"",
    "one-byte.jpg": b"\xff",
    "text.jpg": b"this is no picture",
    "page.jpg": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "drawing.jpg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "postscript.jpg": saved(scene(), "EPS"),
    "icon.jpg": saved(scene(), "ICO"),
    "folder.jpg": "folder",
    "fifo.jpg": "fifo",
    "device.jpg": "device",
    "circle.jpg": "circle",
    "header-alone.jpg": JPEG[: JPEG.index(b"\xff\xda")],
    "half-zeros.png": PNG[: len(PNG) // 2] + bytes(len(PNG) // 2),
    "wrong-checksum.png": PNG[:40] + bytes([PNG[40] ^ 255]) + PNG[41:],
    "floating.tif": saved(Image.new("F", (8, 8), 0.5), "TIFF"),
    "profile.png": png(8, 8, zlib.compress(bytes(72)), chunk(b"iCCP", b"a\0\0" + unpacking_to(100 << 20))),
    "comment.png": png(8, 8, zlib.compress(bytes(72)), chunk(b"zTXt", b"a\0\0" + unpacking_to(100 << 20))),
    "chunks.png": png(8, 8, zlib.compress(bytes(72)), chunk(b"abCd") * 500_000),
    "junk.jpg": b"\xff\xd8\xff" + bytes(10_000_000),
    "scans.jpg": endless_jpeg(),
}
