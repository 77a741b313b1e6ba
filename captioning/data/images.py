"""One image file to one upright RGB picture, or a sentence saying why not. Knows nothing of tensors."""

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from captioning.errors import UserError

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # named, so that no other decoder (EPS: Ghostscript) ever starts
MAX_PIXELS = 50_000_000


def read_image(file: Path | BytesIO, least: int | None = None) -> Image.Image:
    """An upright RGB picture: EXIF orientation applied, transparency on white, 16 bits scaled to 8.

    least: a JPEG may come at 1/2, 1/4 or 1/8 of its size, the smallest whose short side has still this many pixels; reading is then
    2 to 7 times faster. Without it, and for other formats, every pixel comes.
    Raises UserError for a missing, unreadable, truncated or oversized file. The size is judged from the header,
    before any pixel is decoded.
    """
    name = file if isinstance(file, Path) else "the image"
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file, formats=FORMATS) as image:  # it warns of sizes refused below
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{name}: {width} x {height} pixels; at most {MAX_PIXELS:,} pixels are read")
            if least is not None and (reduced := image.draft(None, (least, least))):  # None for all formats but JPEG
                image = image.crop(reduced[1])  # without a last row or column that is mostly not of the picture: it would shift all others
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder, not an image") from None
    except UnidentifiedImageError:
        raise UserError(f"{name}: not an image of a known format ({', '.join(FORMATS)})") from None
    except UserError:
        raise
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ValueError, ... for broken files
        raise UserError(f"{name}: cannot be decoded ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        image = image.convert("I").point(lambda value: value / 256).convert("L")  # convert("L") alone would clip at 255
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")
