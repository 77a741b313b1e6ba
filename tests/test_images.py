"""Laws of pictures: read upright and once, by one path in training and in serving."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import pictures
from PIL import Image

from captioning.data.dataset import ImageSource
from captioning.data.images import read_image
from captioning.data.records import Record
from captioning.data.transforms import Transform
from captioning.errors import UserError


def test_pictures_of_every_mode_come_out_upright_on_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image = Image.new("RGB", (20, 10), "red")
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (10, 20)
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "grey.png")
    palette = Image.new("P", (4, 4), 0)
    palette.save(tmp_path / "palette.png", transparency=0)
    for name in ("clear", "grey", "palette"):
        assert read_image(tmp_path / f"{name}.png").getpixel((1, 1)) == (255, 255, 255), name
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png").getpixel((0, 0)) == (128, 128, 128)
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    assert read_image(tmp_path / "print.jpg").getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_that_cannot_be_read_says_why(tmp_path):
    good = pictures(tmp_path, "good.jpg") / "good.jpg"
    (tmp_path / "cut.jpg").write_bytes(good.read_bytes()[:300])
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("1", (13000, 13000)).save(tmp_path / "bomb.png")
    for name, reason in (
        ("none.jpg", "no such file"),
        ("cut.jpg", "cannot be decoded"),
        ("text.jpg", "not an image"),
        ("bomb.png", "13000 x 13000"),
    ):
        with pytest.raises(UserError, match=reason):
            read_image(tmp_path / name)


def test_a_transform_normalises_and_crops_or_squashes():
    image = Image.new("RGB", (40, 20), "black")
    image.paste("white", (0, 0, 10, 20))  # the left quarter: outside the centre square
    mean, std = torch.tensor(Transform.mean), torch.tensor(Transform.std)
    cropped, squashed = Transform(20, "crop")(image), Transform(20, "squash")(image)
    torch.testing.assert_close(cropped[:, 10, 1], (0 - mean) / std)
    torch.testing.assert_close(squashed[:, 10, 1], (1 - mean) / std)


def test_a_transform_normalises_every_level_as_its_formula_says():
    levels = Image.fromarray(np.arange(256 * 3, dtype=np.uint8).reshape(16, 16, 3))
    pixels = Transform(16)(levels)
    mean, std = torch.tensor(Transform.mean)[:, None, None], torch.tensor(Transform.std)[:, None, None]
    expected = (torch.from_numpy(np.array(levels)).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(pixels, expected, atol=1e-6, rtol=0)
    assert pixels.is_contiguous()


def photograph(path: Path, width: int, height: int, **options) -> Path:
    """Areas, edges and some grain, as in a photograph; red above and blue below at the left edge."""
    noise = np.random.default_rng(0)
    areas = Image.fromarray(noise.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    edges = Image.fromarray(noise.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    grain = np.asarray(Image.blend(areas, edges, 0.3), dtype=np.float32) + noise.normal(0, 4, (height, width, 3))
    image = Image.fromarray(grain.clip(0, 255).astype(np.uint8))
    image.paste("red", (0, 0, width // 4, height // 4))
    image.paste("blue", (0, height - height // 4, width // 4, height))
    image.save(path, quality=90, **options)
    return path


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize(
    ("size", "zoom", "big", "read"),
    [
        (100, 0.0, (640, 480), (320, 240)),
        (100, 0.5, (640, 480), (640, 480)),  # half of 480 is still cropped away
        (100, 0.0, (1601, 1199), (400, 300)),
        (100, 0.5, (1601, 1199), (800, 600)),
        (70, 0.0, (1199, 1607), (150, 201)),
        (64, 0.0, (300, 1000), (150, 500)),
        (64, 1.0, (640, 480), (640, 480)),
    ],
)
def test_a_big_jpeg_is_decoded_small_and_looks_the_same(fit, size, zoom, big, read, tmp_path):
    path, transform = photograph(tmp_path / "big.jpg", *big), Transform(size, fit, zoom=zoom)
    small, full = transform.read(path), read_image(path)
    assert full.size == big and small.size == read
    assert small.size == big or min(small.size) * (1 - zoom) >= 2 * size
    difference = np.abs(np.asarray(transform.picture(small), dtype=int) - np.asarray(transform.picture(full), dtype=int)).mean()
    assert difference <= 1, difference
    draws = [torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)]
    if zoom < 1:  # the same part of the picture is cropped
        apart = (transform(small, draws[0]) - transform(full, draws[1])).abs().mean()
        assert apart < 0.02, apart


def test_pictures_which_need_no_reduction_come_bit_for_bit(tmp_path):
    transform = Transform(224)
    for name, *size in (("895.jpg", 1000, 895), ("tiny.jpg", 90, 60), ("big.png", 640, 480)):
        path = photograph(tmp_path / name, *size)
        assert transform.read(path).tobytes() == read_image(path).tobytes(), path


def test_a_big_jpeg_that_was_turned_comes_upright(tmp_path):
    for orientation, corner in ((1, (0, 0)), (3, (1, 1)), (6, (1, 0)), (8, (0, 1))):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = photograph(tmp_path / f"{orientation}.jpg", 640, 480, exif=exif)
        image = Transform(100).read(path)
        assert image.size == ((320, 240) if orientation in (1, 3) else (240, 320))
        red, _, blue = image.getpixel((corner[0] * (image.width - 1), corner[1] * (image.height - 1)))
        assert red > 200 and blue < 60, orientation


def test_a_jpeg_too_large_to_read_is_refused_however_small_it_would_come(tmp_path):
    path = photograph(tmp_path / "bomb.jpg", 640, 480)
    content = path.read_bytes()
    header = content.index(b"\xff\xc0") + 5  # height and width
    path.write_bytes(content[:header] + (9000).to_bytes(2) + (8000).to_bytes(2) + content[header + 4 :])
    with pytest.raises(UserError, match="8000 x 9000 pixels; at most"):
        Transform(224).read(path)


def test_what_trains_sees_the_picture_that_serves(tmp_path):
    transform = Transform(64, zoom=0.2)
    record = Record("big", photograph(tmp_path / "big.jpg", 640, 480), ["a word"], "list line", [1])
    served = transform(transform.read(record.path))
    assert torch.equal(ImageSource(transform).load([record], None)[0], served)
    assert torch.equal(transform(transform.read(BytesIO(record.path.read_bytes()))), served)
