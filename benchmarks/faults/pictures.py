"""Broken pictures, made: kinds of damage, files cut short, files with a byte changed, and small files that unpack to gigabytes."""

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def damaged(kinds: int, truncations: int, flips: int) -> dict[str, bytes | str]:
    """By file name; the same at every call."""
    draw = random.Random(0)
    whole = seeds()
    made = {f"kind-{name}": content for name, content in list(KINDS.items())[:kinds]}
    for number in range(truncations):
        name, content = draw.choice(whole)
        made[f"cut-{number:03}.{name}"] = content[: draw.randrange(len(content))]
    for number in range(flips):
        name, content = draw.choice(whole)
        place = draw.randrange(min(len(content), 600) if number % 2 else len(content))  # half of them in the header
        flipped = bytes([content[place] ^ 1 << draw.randrange(8)])
        made[f"flip-{number:03}.{name}"] = content[:place] + flipped + content[place + 1 :]
    return made


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
