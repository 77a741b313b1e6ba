"""Small forms of the rows on data in the table of faults, and the laws beside them."""

import io
import os
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from benchmarks.faults import captions as caption_faults
from benchmarks.faults import images as image_faults
from benchmarks.faults import pictures
from captioning.data import annotations
from captioning.data.captions import read_captions
from captioning.data.check import check_splits
from captioning.data.images import read_image
from captioning.data.transforms import Transform
from captioning.data.vocabulary import words
from captioning.errors import MachineError, UserError
from captioning.metrics.score import References


def test_broken_images_are_refused_in_a_sentence_and_counted(tmp_path):
    outcome = image_faults.broken_images(tmp_path, kinds=20, truncations=12, flips=24)
    assert outcome.count == 56 and outcome.passed == outcome.count, outcome.note


def test_bombs_are_refused_from_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr(image_faults, "BOMB_SECONDS", 4 * image_faults.BOMB_SECONDS)  # others may want this core
    outcome = image_faults.bombs(tmp_path)
    assert outcome.count == 6 and outcome.passed == outcome.count, outcome.note


def test_bad_captions_are_read_right_or_refused_with_their_line(tmp_path):
    outcome = caption_faults.bad_captions(tmp_path)
    assert outcome.count == 25 and outcome.passed == outcome.count, outcome.note


def test_a_file_cut_short_is_refused_or_gives_the_same_pixels(tmp_path):
    for name, content in pictures.seeds():
        whole, step = read_image(io.BytesIO(content)).tobytes(), max(1, len(content) // 40)
        for end in [*range(0, len(content), step), len(content) - 1, len(content) - 2, len(content) - 12, len(content) - 13]:
            try:
                cut = read_image(io.BytesIO(content[:end]))
            except UserError:
                continue
            assert cut.tobytes() == whole, f"{name}: {len(content) - end} bytes less"


def test_a_png_whose_checksum_is_wrong_is_refused_though_it_decodes():
    content = pictures.PNG
    end = content.index(b"IEND") - 8  # the checksum of the pixels
    with pytest.raises(UserError, match="a checksum is wrong"):
        read_image(io.BytesIO(content[:end] + bytes([content[end] ^ 1]) + content[end + 1 :]))


def as_png(kind: int, pixel: bytes, clear: bytes) -> io.BytesIO:
    """One pixel of 16 bits, and the level or colour that is transparent."""
    chunk = pictures.chunk
    header = struct.pack(">IIBBBBB", 1, 1, 16, kind, 0, 0, 0)
    rows = chunk(b"IDAT", zlib.compress(b"\0" + pixel))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", clear) + rows + chunk(b"IEND"))


def test_sixteen_bits_are_scaled_and_their_transparent_level_is_white(tmp_path):
    levels = np.array([[0, 255], [256, 65535]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        assert np.asarray(read_image(tmp_path / name))[..., 0].tolist() == [[0, 0], [1, 255]], name
    Image.new("I", (2, 2), 65535).save(tmp_path / "long.tif")
    assert read_image(tmp_path / "long.tif").getpixel((0, 0)) == (255, 255, 255)
    for pixel, expected in ((b"\x12\x34", 255), (b"\x12\x35", 0x12)):
        assert read_image(as_png(0, pixel, b"\x12\x34")).getpixel((0, 0)) == (expected,) * 3
    assert read_image(as_png(2, b"\x12\x34" * 3, b"\x12\x34" * 3)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "level", "reason"), [("F", 0.5, "floating point"), ("I", 70_000, "70000"), ("I", -1, "-1")])
def test_levels_of_no_known_scale_are_refused(mode, level, reason, tmp_path):
    Image.new(mode, (2, 2), level).save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=reason):
        read_image(tmp_path / "x.tif")


def test_cmyk_comes_in_its_colours_and_of_several_frames_the_first(tmp_path):
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for name in ("ink.jpg", "ink.tif"):
        ink.save(tmp_path / name)
        red, green, blue = read_image(tmp_path / name).getpixel((8, 8))
        assert red > 240 and green < 15 and blue < 15, name
    red, green = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 250, 0))
    for name in ("two.gif", "two.tif", "two.webp", "two.png"):
        red.save(tmp_path / name, save_all=True, append_images=[green])
        colour = read_image(tmp_path / name).getpixel((8, 8))
        assert colour[0] > 200 and colour[1] < 50, name


def test_a_bmp_from_above_is_as_one_from_below():
    content, (width, height) = pictures.saved(pictures.scene(), "BMP"), pictures.scene().size
    turned = read_image(io.BytesIO(pictures.bmp(width, -height)))
    upright = np.asarray(read_image(io.BytesIO(content)))
    assert np.array_equal(np.asarray(turned), upright[::-1])


def test_damaged_metadata_spoils_no_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = pictures.saved(pictures.scene(), "JPEG", exif=exif)
    damaged = content.replace(b"Exif\0\0MM", b"Exif\0\0??").replace(b"Exif\0\0II", b"Exif\0\0??")
    assert damaged != content and read_image(io.BytesIO(content)).size == (48, 64)
    assert read_image(io.BytesIO(damaged)).size == (64, 48)


def test_every_orientation_is_made_upright():
    picture = pictures.scene(16, 8)
    turned = {1: picture, **{number: picture.transpose(method) for number, method in UNDONE.items()}}
    for number, image in turned.items():
        exif = Image.Exif()
        exif[0x0112] = number
        assert read_image(io.BytesIO(pictures.saved(image, "PNG", exif=exif))).tobytes() == picture.tobytes(), number


UNDONE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def test_a_disk_that_fails_is_not_the_pictures_fault(tmp_path, monkeypatch):
    import captioning.data.images as module

    (tmp_path / "x.png").write_bytes(pictures.PNG)
    for number, kind in ((5, MachineError), (24, MachineError), (13, UserError)):

        def failing(file, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(module, "opened", failing)
        with pytest.raises(UserError) as raised:
            read_image(tmp_path / "x.png")
        assert type(raised.value) is kind and os.strerror(number) in str(raised.value)


def test_reading_in_threads_neither_warns_nor_changes_the_filters_of_warnings():
    code = """if True:
        import io, sys, threading, warnings
        from benchmarks.faults.pictures import seeds, jpeg
        from captioning.data.images import read_image
        before = list(warnings.filters)
        def read():
            for name, content in [*seeds(), ("big", jpeg(12000, 8000))] * 3:
                try: read_image(io.BytesIO(content[:-1]))
                except Exception: pass
        threads = [threading.Thread(target=read) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert list(warnings.filters) == before
    """
    ended = subprocess.run([sys.executable, "-W", "always", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0 and "Warning" not in ended.stderr, ended.stderr


def test_what_was_read_can_be_trained_on_and_scored():
    """Every caption that a reader lets through, tokenized by both tokenizers and scored, in no time."""
    texts = [case.read for case in caption_faults.CASES.values() if case.read]
    scores = References([[text] for text in texts]).score(texts)
    assert scores["bleu1"] == pytest.approx(1) and len(words(caption_faults.LONG)) == 10_000


KARPATHY = [
    ('{"images": 3}', "images is no list"),
    ('{"images": ["x"]}', "image 0: not of Karpathy's format"),
    ('{"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": 7}]}]}', "image 0 sentence 0: the caption is 7"),
    ('{"images": [{"filename": "../a.jpg", "split": "train", "sentences": []}]}', "image 0: image '../a.jpg'"),
    ('{"images": [{"filename": "a.jpg", "filepath": "..", "split": "train", "sentences": []}]}', r"image 0: image '\.\./a\.jpg'"),
    ('{"images": [{"filename": "a.jpg", "split": ["train"], "sentences": []}]}', "image 0: split"),
    ('{"images": [{"filename": "", "split": "train", "sentences": []}]}', "image 0: the image's name is ''"),
    ('{"images": [],\n"images": []}', "line 2: the key 'images' stands twice"),
    ('{"images": [Infinity]}', "Infinity is no number"),
    ('{"images": ' + "9" * 5000 + "}", "line 1: not JSON"),
]


@pytest.mark.parametrize(("content", "reason"), KARPATHY)
def test_a_bad_json_of_karpathys_is_refused_by_its_place(content, reason, tmp_path):
    (tmp_path / "dataset.json").write_text(content)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match=rf"dataset\.json.*{reason}"):
        annotations.karpathy(tmp_path)


COCO = [
    ('{"images": [{"id": [1], "file_name": "a.jpg"}], "annotations": []}', "images 0: not of COCO's format"),
    ('{"images": [{"id": 1, "file_name": ["a"]}], "annotations": []}', "images 0: the image's name is"),
    ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}', "images 1: the id 1 is"),
    ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 4, "image_id": 1, "caption": 0}]}', "4: the caption is 0"),
    ('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"id": 4, "image_id": 2, "caption": "x"}]}', "annotations 0: .*without 2"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "reason"), COCO)
def test_a_bad_json_of_cocos_is_refused_by_its_place(content, reason, tmp_path):
    (tmp_path / "captions_train2014.json").write_text(content)
    with pytest.raises(UserError, match=rf"captions_train2014\.json.*{reason}"):
        annotations.coco(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("x.json", '{"a": "x\\u0000"}', "image 'a': the caption holds a NUL"),
        ("x.json", '{"a": "x",\n "b": "y",\n "a": "z"}', "line 3: the key 'a' stands twice"),
        ("x.json", '[{"image_id": 1.5, "caption": "x"}]', "item 0: the image id is 1.5"),
        ("x.json", '[{"image_id": "\\udc00", "caption": "x"}]', "item 0: the image id holds half a character"),
        ("x.csv", '"image_id","caption","caption"\n1,a,b\n', "line 1: a column stands there twice"),
        ("x.csv", '"image,caption\n', "line 1: not CSV"),
    ],
)
def test_bad_captions_to_score_are_refused_by_their_place(file, content, reason, tmp_path):
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=reason):
        read_captions(tmp_path / file)


def test_a_header_in_quotes_is_read(tmp_path):
    (tmp_path / "x.csv").write_text('"image","caption"\n"a.jpg","x"\n')
    assert read_captions(tmp_path / "x.csv") == {"a.jpg": ["x"]}


@pytest.mark.parametrize("name", ["", " ", "/etc/passwd", "../x.jpg", "a/../../x.jpg", "a\\x.jpg", "a\nx.jpg", "x" * 300, "é" * 130])
def test_names_of_images_stay_below_their_folder_and_can_be_names(name, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "captions.csv").write_text(f'image,caption\n"{name}",x\n')
    with pytest.raises(UserError, match=r"captions\.csv line 2: .*image"):
        annotations.table(tmp_path)


def test_check_data_finds_one_picture_under_two_spellings_in_two_splits(tmp_path):
    (tmp_path / "images").mkdir()
    for name, content in (("a.png", pictures.PNG), ("b.png", pictures.PNG), ("c.jpg", pictures.JPEG)):
        (tmp_path / "images" / name).write_bytes(content)

    def problems(*pairs):
        (tmp_path / "captions.csv").write_text("image,caption,split\n" + "".join(f"{name},a word,{split}\n" for name, split in pairs))
        return [(problem.kind, problem.is_fatal) for problem in check_splits(annotations.table(tmp_path))]

    assert problems(("a.png", "train"), ("c.jpg", "val")) == []
    assert problems(("a.png", "train"), ("./a.png", "val")) == [("shared image", True)]
    assert problems(("a.png", "train"), ("b.png", "val")) == [("shared image", True)]
    assert problems(("a.png", "train"), ("b.png", "train")) == [("duplicate image", False)]
    with pytest.raises(UserError, match="line 3: image a.png is in two splits"):
        problems(("a.png", "train"), ("a.png", "val"))


def test_a_folder_a_pipe_and_a_device_never_make_it_wait(tmp_path):
    """Through the transform too, and in a thread: what would hang is found out."""
    reasons = {"folder.jpg": "is a folder", "fifo.jpg": "no regular file", "device.jpg": "no regular file", "circle.jpg": "cannot be read"}
    for kind, reason in reasons.items():
        path, said = pictures.write(tmp_path / kind, pictures.KINDS[kind]), []

        def read(path=path, said=said):
            try:
                Transform(8).read(path)
            except UserError as error:
                said.append(str(error))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(5)
        assert said and f"{path}: {reason}" in said[0].replace(": is no", ": no")
