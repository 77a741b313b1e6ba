"""One image file to one upright RGB picture, or a sentence saying why not. Knows nothing of tensors."""

import errno
import io
import stat
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from captioning.data.formats import FORMATS
from captioning.errors import MachineError, UserError

MAX_PIXELS = 50_000_000
MAX_BYTES = 8 * MAX_PIXELS  # what so many pixels take at most, of four channels in 16 bits
MAX_SCANNED = 30 * MAX_PIXELS  # a JPEG may go over its pixels again and again: 75 bytes and 40 ms a time at 50 megapixels
UPRIGHT = {  # EXIF's orientations
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
OF_THE_MACHINE = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT}

# Once and for all: `catch_warnings` around each reading leaves the filters of another thread behind where two overlap.
warnings.filterwarnings("ignore", module=r"PIL\.")  # of sizes, which are refused below, and of damaged metadata


class Limited(io.BufferedReader):
    """A file that answers only so many reads. Headers are read in Python, byte by byte where they hold junk: 20 MB of empty chunks in a
    PNG would take 4 seconds. A real header takes some hundred reads, and pixels come in pieces of kilobytes."""

    def __init__(self, raw: BinaryIO, size: int):
        super().__init__(raw)  # type: ignore[arg-type]
        self.left = 20_000 + min(size // 60, 500_000)

    def read(self, size: int | None = -1, /) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise UserError("cannot be decoded (too much junk between its parts)")
        return super().read(size)


def read_image(file: Path | io.BytesIO, least: int | None = None) -> Image.Image:
    """An upright RGB picture: EXIF orientation applied, transparency on white, 16 bits scaled to 8, the first of several frames.

    least: a JPEG may come at 1/2, 1/4 or 1/8 of its size, the smallest whose short side has still this many pixels; reading is then
    2 to 7 times faster. Without it, and for other formats, every pixel comes.
    Raises UserError for a missing, unreadable, truncated or oversized file, and for what is no regular file. The size is judged from
    the header, before any pixel is decoded. MachineError, a UserError, where the file is not to blame.
    """
    name = file if isinstance(file, Path) else "the image"
    try:
        with opened(file) as content, Image.open(content, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{width} x {height} pixels; at most {MAX_PIXELS:,} pixels are read")
            if image.format in ("JPEG", "MPO"):
                refuse_endless(everything(content), width * height)
            if image.format == "PNG" and image.tile:
                refuse_damaged(everything(content), image.tile[0].offset - 8)
            if least is not None and (reduced := image.draft(None, (least, least))):  # None for all formats but JPEG
                image = image.crop(reduced[1])  # without a last row or column that is mostly not of the picture: it would shift all others
            return to_rgb(upright(image))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Image.DecompressionBombError:  # Pillow's own limit is larger
        raise UserError(f"{name}: too large; at most {MAX_PIXELS:,} pixels are read") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image of a known format ({', '.join(FORMATS)})") from None
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise MachineError(f"{name}: cannot be read ({error.strerror})") from None
        reason = "no such file" if error.errno == errno.ENOENT else f"cannot be read ({error.strerror})"
        raise UserError(f"{name}: {reason if error.errno else f'cannot be decoded ({error})'}") from None
    except MemoryError:
        raise MachineError(f"{name}: there is no memory left to read it") from None
    except Exception as error:  # Pillow raises SyntaxError, struct.error, ValueError, ... for broken files
        raise UserError(f"{name}: cannot be decoded ({str(error) or type(error).__name__})") from None


def opened(file: Path | io.BytesIO) -> Limited:
    """Regular files alone: to open a FIFO would wait for a writer, and a device may never end."""
    if isinstance(file, io.BytesIO):
        return Limited(io.BytesIO(file.getvalue()), file.getbuffer().nbytes)  # its own: a reader closes what it reads
    about = file.stat()
    if stat.S_ISDIR(about.st_mode):
        raise UserError("is a folder, not an image")
    if not stat.S_ISREG(about.st_mode):
        raise UserError("is no regular file")
    if about.st_size == 0:
        raise UserError("is empty")
    if about.st_size > MAX_BYTES:
        raise UserError(f"{about.st_size:,} bytes; at most {MAX_BYTES:,} are read")
    return Limited(open(file, "rb", buffering=0), about.st_size)  # type: ignore[arg-type]


def everything(content: BinaryIO) -> bytes:
    place = content.tell()
    content.seek(0)
    whole = content.read()
    content.seek(place)
    return whole


def refuse_endless(content: bytes, pixels: int) -> None:
    """A JPEG with thousands of scans, each of which visits every pixel."""
    scans = content.count(b"\xff\xda")  # within a scan a byte of 255 is always followed by 0
    if scans * pixels > MAX_SCANNED:
        raise UserError(f"a JPEG of {scans} scans of {pixels:,} pixels; at most {MAX_SCANNED:,} pixels are scanned")


def refuse_damaged(content: bytes, place: int) -> None:
    """A PNG whose pixels do not have the checksums that stand beside them: Pillow does not look, and some damage decodes to nonsense."""
    while content[place + 4 : place + 8] == b"IDAT":
        end = place + 8 + int.from_bytes(content[place : place + 4])
        if end + 4 > len(content):
            raise UserError("cannot be decoded (truncated)")
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4]):
            raise UserError("cannot be decoded (a checksum is wrong)")
        place = end + 4


def upright(image: Image.Image) -> Image.Image:
    try:
        method = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata does not spoil the pixels
        return image
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise UserError("pixels in floating point, which do not say what is white; 8 or 16 bits are read")
    if image.mode.startswith("I"):
        return from_16_bits(image)
    if image.mode == "La":
        image = image.convert("LA")
    if isinstance(clear := image.info.get("transparency"), tuple) and max(clear) > 255:  # of 16 bits, as the pixels were
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def from_16_bits(image: Image.Image) -> Image.Image:
    """The upper 8 bits of grey levels; `convert` alone would clip them at 255."""
    levels, clear = np.asarray(image), image.info.get("transparency")
    if levels.size and (levels.min() < 0 or levels.max() > 0xFFFF):
        raise UserError(f"grey levels from {levels.min()} to {levels.max()}; 8 or 16 bits are read")
    grey = (levels >> 8).astype(np.uint8)
    if isinstance(clear, int):
        grey[levels == clear] = 255
    return Image.fromarray(grey).convert("RGB")
