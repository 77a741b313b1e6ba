"""Captions of many files: which files, in batches as alone, stopped and gone on; alt texts beside the pictures and within their copies."""

import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from io import BytesIO

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image, ImageCms, PngImagePlugin

from captioning.build.serving import open_captioner
from captioning.cli import main as captioning_command
from captioning.data.formats import FORMATS, SUFFIXES
from captioning.errors import UserError
from captioning.serving.alt_text import Copies, described
from captioning.serving.caption_file import CaptionFile, still_to_do
from captioning.serving.captioner import Asked, Captioner
from captioning.serving.containers import container_of, jpeg_segments, jpeg_with, png_chunks, webp_chunks
from captioning.serving.files import AHEAD, answers, find
from captioning.serving.metadata import DC, RDF, Exif, Iptc, Xmp, data_set

TEXT = "Ein Hund läuft – 犬が走る <&> \"'."
NAMES = ["a.jpg", "b/c.png", "b/d.JPG", "e.webp", "f.jpg", "g.png", "h.gif"]


def photo(number: int = 0, size: int = 40) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def encoded(format: str, **more) -> bytes:
    file = BytesIO()
    photo().save(file, format=format, **more)
    return file.getvalue()


def folder_of(place, names=NAMES):
    for number, name in enumerate(names):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(place / name)
    return place


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "photos")


@pytest.fixture(scope="module")
def captioner(finished):
    return open_captioner(finished, "cpu")[0]


@pytest.fixture
def caption(finished, monkeypatch, capsys):
    """caption(*arguments) -> (exit code, standard output, standard error)."""

    def run(*arguments):
        try:
            captioning_command(["caption", *map(str, arguments), "--run", str(finished), "--device", "cpu"])
            code = 0
        except SystemExit as exit:
            code = exit.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# which files


def test_the_suffixes_are_those_of_the_formats_that_are_read():
    Image.init()
    assert set(SUFFIXES) == {suffix for suffix, format in Image.registered_extensions().items() if format in FORMATS}


def test_a_folder_is_its_pictures_in_the_order_of_their_names(folder):
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_bytes(b"")
    folder_of(folder / ".thumbnails", ["z.jpg"])
    found = find([str(folder)])
    assert list(found.paths) == NAMES and found.folder == str(folder) and not found.named and not found.problems
    assert list(found.paths.values()) == [str(folder / name) for name in NAMES]


def test_links_that_lead_back_are_walked_once(folder):
    (folder / "b" / "back").symlink_to(folder)
    (folder / "b" / "itself").symlink_to(folder / "b")
    folder_of(folder.parent / "elsewhere", ["x.jpg"])
    (folder / "link").symlink_to(folder.parent / "elsewhere")
    assert list(find([str(folder)]).paths) == [*NAMES, "link/x.jpg"]
    assert {name for name in find([f"{folder}/**/*.jpg"]).paths if "/" not in name} == {"a.jpg", "f.jpg"}
    assert len(find([f"{folder}/**/*"]).paths) >= len(NAMES) + 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg", "f.jpg"]),
        ("**/*.[jJ]*", ["a.jpg", "b/d.JPG", "f.jpg"]),
        ("b/*", ["c.png", "d.JPG"]),
        ("?", ["b/c.png", "b/d.JPG"]),  # a folder that matches, as a shell would give it
        ("**", NAMES),
        ("*/c.png", ["b/c.png"]),
    ],
)
def test_a_pattern_in_quotes_is_what_the_shell_would_make_of_it(folder, monkeypatch, pattern, expected):
    monkeypatch.chdir(folder)
    assert list(find([pattern]).paths) == expected


def test_files_given_twice_are_captioned_once_and_a_name_with_brackets_is_a_file(folder, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.copy("a.jpg", "[1].jpg")
    found = find(["f.jpg", "[1].jpg", ".", "*.jpg", "./a.jpg"])
    assert list(found.paths)[:2] == ["f.jpg", "[1].jpg"] and sorted(found.paths) == sorted([*NAMES, "[1].jpg"])
    assert found.named == {"f.jpg", "[1].jpg", "a.jpg"}


def test_names_are_below_the_folder_that_all_have_in_common(folder):
    folder_of(folder.parent / "more", ["a.jpg"])
    assert list(find([str(folder / "b"), str(folder.parent / "more" / "a.jpg")]).paths) == [
        "photos/b/c.png",
        "photos/b/d.JPG",
        "more/a.jpg",
    ]


# captions in batches


def test_captions_in_any_batch_are_those_of_each_picture_alone(captioner, folder):
    paths = list(find([str(folder)]).paths.values())
    for asked in (Asked(beam_size=1), Asked(beam_size=3, candidates=3)):
        alone, *others = (
            [answer for batch in answers(captioner, paths, asked, size) for answer in batch] for size in (1, 3, len(paths), 99)
        )
        assert [answer.path for answer in alone] == paths
        assert len({answer.candidates[0].log_p for answer in alone}) == len(paths)  # so that none can stand for another
        for other in others:
            for one, same in zip(alone, other, strict=True):
                assert one.path == same.path and [its.caption for its in one.candidates] == [its.caption for its in same.candidates]
                assert [its.log_p for its in same.candidates] == pytest.approx([its.log_p for its in one.candidates], rel=3e-7, abs=1e-5)


def test_no_more_pictures_are_held_than_a_few_batches(captioner, folder):
    held = most = 0

    class Counting:
        transform = captioner.transform

        def read(self, path):
            return captioner.read(path)

        def prepare(self, image):
            nonlocal held, most
            held += 1
            most = max(most, held)
            return captioner.prepare(image)

        def __call__(self, pixels, asked):
            nonlocal held
            time.sleep(0.01)  # the threads could run far ahead
            held -= len(pixels)
            return captioner(pixels, asked)

    count = sum(map(len, answers(Counting(), [str(folder / "a.jpg")] * 60, Asked(beam_size=1), 2)))
    assert count == 60 and held == 0 and most <= (AHEAD + 1) * 2


def test_a_file_on_the_command_line_is_printed_as_ever_and_a_broken_one_ends_with_two(caption, folder):
    (folder / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    code, out, err = caption(folder / "a.jpg", folder / "b" / "broken.jpg", folder / "f.jpg")
    assert code == 2 and [line.partition(": ")[0] for line in out.splitlines()] == [str(folder / "a.jpg"), str(folder / "f.jpg")]
    assert err.count("\n") == 1 and "broken.jpg: " in err
    code, out, err = caption(folder)
    assert code == 0 and len(out.splitlines()) == len(NAMES) and "7 captioned, 1 broken" in err
    code, out, _ = caption(folder / "b" / "*.png", "--json", "--n-best")
    assert code == 0 and list(json.loads(out)) == [str(folder / "b" / "c.png")] and len(json.loads(out)[str(folder / "b" / "c.png")]) == 3


# captions.jsonl


def test_captions_are_kept_a_line_each_and_broken_files_are_counted(caption, folder, captioner):
    (folder / "b" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    out = folder.parent / "captions.jsonl"
    code, said, err = caption(folder, "--out", out, "--n-best", "--batch-size", 3)
    assert code == 0 and f"7 captioned, 1 broken (listed in {out})" in said and not err
    found = lines(out)
    assert [record["image"] for record in found] == sorted([*NAMES, "b/broken.jpg"])
    assert {"image": "b/broken.jpg", "error": "not an image of a known format (JPEG, PNG, WEBP, GIF, BMP, TIFF)"} in found
    (best,) = captioner([captioner.prepare(captioner.read(folder / "a.jpg"))], Asked(candidates=3))
    assert found[0]["caption"] == best[0].caption and found[0]["description"] == best[0].description
    assert [its["caption"] for its in found[0]["candidates"]] == [its.caption for its in best]
    assert found[0]["log_p"] == pytest.approx(best[0].log_p, abs=1e-3)


def test_a_named_file_that_is_broken_ends_with_two_when_the_others_are_kept(caption, folder):
    out = folder.parent / "captions.jsonl"
    code, said, err = caption(folder / "a.jpg", folder / "none.jpg", folder / "nothing-*.jpg", "--out", out)
    assert code == 2 and "none.jpg: no such file" in err and "nothing-*.jpg: no picture there" in err and "1 captioned, 1 broken" in said
    assert lines(out)[1] == {"image": "none.jpg", "error": "no such file"}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.35, 0.5, 0.8, 0.99, 1.0])
def test_a_file_torn_anywhere_is_gone_on_with_to_the_same_bytes(caption, folder, share):
    (folder / "b" / "broken.jpg").write_bytes(b"broken")
    out, batch = folder.parent / "captions.jsonl", ("--batch-size", 3, "--n-best")
    caption(folder, "--out", out, *batch)
    whole = out.read_bytes()
    out.write_bytes(whole[: int(share * len(whole))])
    code, said, _ = caption(folder, "--out", out, *batch)
    assert code == 0 and out.read_bytes() == whole and "7 captioned" in said and "1 broken" in said


def test_batches_are_cut_at_the_same_places_wherever_the_job_was_ended(tmp_path):
    """Digits depend on the batch: what is to do begins with the whole batch in which the first missing picture was."""
    names = [f"{index:02}" for index in range(20)]
    with CaptionFile(tmp_path / "captions.jsonl", {}) as file:
        for done in range(20):
            assert still_to_do(names, file, 4) == names[done // 4 * 4 :]
            file.add([{"image": names[done], **({"error": "broken"} if done % 3 == 0 else {"description": "A dog."})}])
            assert len(lines(file.path)) == done + 1  # at once: a kill costs no batch that is done
        assert still_to_do(names, file, 4) == []
        assert still_to_do(["0new", *names, "new"], file, 4) == ["0new", "new"]


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGKILL, -9), (signal.SIGINT, 75)])
def test_a_job_that_is_ended_goes_on_to_the_same_bytes(caption, finished, folder, number, expected):
    many = [f"{index:03}.png" for index in range(150)]
    photo().save(folder / "many.png")
    for name in many:
        os.link(folder / "many.png", folder / name)
    out, batch = folder.parent / "captions.jsonl", ["--batch-size", "2"]
    command = [sys.executable, "-m", "captioning.cli", "caption", str(folder), "--run", str(finished), "--out", str(out), *batch]
    job = subprocess.Popen([*command, "--device", "cpu"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while job.poll() is None and (not out.exists() or out.stat().st_size == 0):
        time.sleep(0.002)
    job.send_signal(number)
    _, err = job.communicate(timeout=60)
    assert job.returncode == expected and "Traceback" not in err
    assert number != signal.SIGINT or "the same command goes on" in err
    begun = len(lines(out)) if out.read_bytes().endswith(b"\n") else 0
    assert begun < 158
    assert caption(folder, "--out", out, *batch)[0] == 0
    caption(folder, "--out", folder.parent / "other.jsonl", *batch)
    assert out.read_bytes() == (folder.parent / "other.jsonl").read_bytes()


def test_what_is_captioned_is_not_read_again_and_new_pictures_are_added(caption, folder, monkeypatch):
    out = folder.parent / "captions.jsonl"
    caption(folder, "--out", out)
    before = out.read_bytes()
    folder_of(folder, ["aa.jpg", "new.jpg"])
    read, seen = Captioner.read, []
    monkeypatch.setattr(Captioner, "read", lambda self, path: (seen.append(path.name), read(self, path))[1])
    code, said, _ = caption(folder, "--out", out, "--batch-size", 1)
    assert code == 0 and seen == ["aa.jpg", "new.jpg"] and "9 captioned (7 of them before), 0 broken" in said
    assert out.read_bytes().startswith(before) and len(lines(out)) == 9


def test_a_broken_file_is_tried_again_and_gets_a_second_line_only_when_it_can_be_read(caption, folder):
    out = folder.parent / "captions.jsonl"
    (folder / "a.jpg").write_bytes(b"broken")
    caption(folder, "--out", out)
    before = out.read_bytes()
    assert "6 captioned (6 of them before), 1 broken" in caption(folder, "--out", out)[1] and out.read_bytes() == before
    photo().save(folder / "a.jpg")
    assert "7 captioned (6 of them before), 0 broken" in caption(folder, "--out", out)[1]
    assert [record["image"] for record in lines(out)] == [*NAMES, "a.jpg"] and "caption" in lines(out)[-1]
    assert "7 captioned (7 of them before), 0 broken" in caption(folder, "--out", out)[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--beam-size", "2"], "beam_size=3, this is beam_size=2"),
        (["--max-length", "5"], "max_length=30, this is max_length=5"),
        (["--n-best"], "n_best=False, this is n_best=True"),
    ],
)
def test_captions_by_other_settings_are_refused(caption, folder, more, said):
    out = folder.parent / "captions.jsonl"
    caption(folder, "--out", out)
    before = out.read_bytes()
    code, _, err = caption(folder, "--out", out, *more)
    assert code == 2 and said in err and err.count("\n") == 1 and out.read_bytes() == before


def test_captions_of_another_checkpoint_or_folder_or_origin_are_refused(caption, folder):
    out, beside = folder.parent / "captions.jsonl", folder.parent / "captions.jsonl.about.json"
    caption(folder, "--out", out)
    code, _, err = caption(folder / "b", "--out", out)
    assert code == 2 and "folder=photos, this is folder=photos/b" in err
    about = json.loads(beside.read_text())
    beside.write_text(json.dumps(about | {"checkpoint": "another"}))
    assert "checkpoint=another" in caption(folder, "--out", out)[2]
    beside.unlink()
    code, _, err = caption(folder, "--out", out)
    assert code == 2 and "there already" in err
    beside.write_text(json.dumps(about))
    out.write_text('{"a": 1}\n' + out.read_text())
    assert "line 1 is none that this command writes" in caption(folder, "--out", out)[2]


def test_two_processes_do_not_write_one_file(caption, folder):
    with CaptionFile(folder.parent / "captions.jsonl", {}):
        pass
    (folder.parent / "captions.jsonl.about.json").unlink()
    with CaptionFile(folder.parent / "captions.jsonl", {}):
        code, _, err = caption(folder, "--out", folder.parent / "captions.jsonl")
    assert code == 2 and "another process is writing it" in err


def test_odd_names_come_back_as_they_were(caption, tmp_path):
    names = ["ä b.jpg", "new\nline.jpg", '"quoted", comma.jpg', "=1+1.jpg", os.fsdecode(b"caf\xe9.jpg")]
    place = folder_of(tmp_path / "photos", names)
    out, alt = tmp_path / "captions.jsonl", tmp_path / "alt.csv"
    assert caption(place, "--out", out, "--alt-csv", alt)[0] == 0
    out.read_text(encoding="utf-8")
    assert {record["image"] for record in lines(out)} == set(names) and caption(place)[0] == 0
    with open(alt, newline="", encoding="utf-8") as file:
        rows = dict(list(csv.reader(file))[1:])
    assert {"ä b.jpg", "new\nline.jpg", '"quoted", comma.jpg', "./=1+1.jpg", "caf\\udce9.jpg"} == rows.keys()
    assert not any(name.startswith(("=", "+", "-", "@")) for name in rows)


def test_names_are_no_commands_to_the_terminal(caption, tmp_path):
    names = ["\x1b[31mred.jpg", "two\nlines.jpg", "\x7f\x9b.jpg", "犬 é.jpg", os.fsdecode(b"caf\xe9.jpg")]
    place, into = folder_of(tmp_path / "photos", names), tmp_path / "copies"
    escaped = {"\\x1b[31mred.jpg", "two\\x0alines.jpg", "\\x7f\\x9b.jpg", "犬 é.jpg", "caf\\udce9.jpg"}
    code, out, _ = caption(place)
    assert code == 0 and {line.rpartition("/")[2].partition(": ")[0] for line in out.splitlines()} == escaped
    for name in names:
        (place / name).write_bytes(b"broken")
    given = [place / name for name in names]
    for said in (
        caption(place)[2],
        caption(*given)[2],
        caption(tmp_path / "\x1b[31mnone*")[2],
        caption(*given, "--embed", "xmp", "--into", into)[2],
    ):
        assert said and all(its.isprintable() for its in said.replace("\n", ""))
    assert caption(*given)[2].count("\n") == 1
    record = {"caption": "a dog", "description": "A dog."}
    (tmp_path / "file").touch()
    photo().save(place / "a.jpg")
    with pytest.raises(UserError, match="x1b"):
        Copies(tmp_path / "file", ["xmp"], False).add("\x1b.jpg", str(place / "a.jpg"), record)


def test_a_folder_that_is_to_hold_the_copies_is_not_said_to_be_empty(caption, folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(os.listdir())
    code, _, err = caption(".", "--embed", "xmp", "--into", ".")
    assert code == 2 and ".: the copies go there; they need a folder of their own" in err and err.count("\n") == 1
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([""], "'': no name"),
        (["--batch-size", "0"], "--batch-size 0: at least 1"),
        (["--embed", "exif"], "one without the other"),
        (["--into", "copies"], "one without the other"),
        (["--embed", "exif,mp3", "--into", "copies"], "no 'mp3'. Allowed: exif, xmp, iptc"),
        (["--out", "x.jsonl", "--json"], "--json shows captions"),
        (["--out", "."], "is a folder"),
        (["--alt-csv", "."], "is a folder"),
        (["--out", "nowhere/x.jsonl"], "nowhere/x.jsonl: cannot be written"),
        (["--alt-csv", "nowhere/x.csv"], "nowhere/x.csv: cannot be written"),
        (["--embed", "xmp", "--into", "photos/a.jpg"], "is a file"),
        (["--embed", "xmp", "--into", "photos/a.jpg/sub"], "--into photos/a.jpg/sub: photos/a.jpg is a file"),
        (["--embed", "xmp", "--into", "a" * 300], "File name too long"),
        (["--out", "a" * 300], "File name too long"),
        (["--alt-csv", "a" * 300 + ".csv"], "File name too long"),
        (["--alt-csv", "alt.txt"], "alt.txt: must end in .csv"),
    ],
)
def test_a_mistake_is_one_plain_sentence(caption, folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder.parent)
    code, _, err = caption("photos", *arguments)
    assert code == 2 and said in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--attention", "photos/a.jpg"], "--attention photos/a.jpg: is one of the pictures (photos/a.jpg)"),
        (["--attention", "link.png"], "--attention link.png: is one of the pictures (photos/g.png)"),
        (["--alt-csv", "hard.csv"], "--alt-csv hard.csv: is one of the pictures (photos/f.jpg)"),
        (["--out", "photos/empty.jpg"], "--out photos/empty.jpg: is one of the pictures"),
        (["--out", "x.csv", "--alt-csv", "photos/../x.csv"], "--alt-csv photos/../x.csv: is the file of --out too"),
        (["--out", "there.csv", "--alt-csv", "same.csv"], "--alt-csv same.csv: is the file of --out too"),
    ],
)
def test_no_output_replaces_a_picture_or_another_output(caption, folder, monkeypatch, arguments, said):
    monkeypatch.chdir(folder.parent)
    (folder / "empty.jpg").touch()
    (folder.parent / "link.png").symlink_to(folder / "g.png")
    (folder.parent / "hard.csv").hardlink_to(folder / "f.jpg")
    (folder.parent / "there.csv").touch()
    (folder.parent / "same.csv").symlink_to("there.csv")
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    code, shown, err = caption("photos", *arguments)
    assert code == 2 and said in err and err.count("\n") == 1 and not shown
    assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == before


def test_a_drawing_that_cannot_be_written_is_one_sentence(caption, folder, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    code, said, err = caption(folder / "a.jpg", "--attention", folder.parent / "words.png")
    assert code == 2 and said.startswith(f"{folder / 'a.jpg'}: ") and err.count("\n") == 1
    assert "words.png: cannot be written (No space left on device)" in err


# alt texts


def test_the_csv_has_every_caption_of_the_file_also_when_it_went_on(caption, folder):
    out, alt = folder.parent / "captions.jsonl", folder.parent / "alt.csv"
    caption(folder, "--out", out)
    out.write_bytes(out.read_bytes()[:200])
    caption(folder, "--out", out, "--alt-csv", alt)
    with open(alt, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [["image", "alt_text"], *([record["image"], record["description"]] for record in lines(out))]
    assert not list(folder.parent.glob("*.unfinished")) and not list(folder.parent.glob(".*"))


def test_the_csv_is_there_also_where_a_named_file_was_broken(caption, folder):
    alt = folder.parent / "alt.csv"
    assert caption(folder / "a.jpg", folder / "none.jpg", "--alt-csv", alt)[0] == 2
    assert [line.partition(",")[0] for line in alt.read_text().splitlines()] == ["image", "a.jpg"]


def test_copies_carry_the_description_and_originals_are_not_touched(caption, folder):
    (folder / "b" / "broken.jpg").write_bytes(b"broken")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    out, into = folder.parent / "captions.jsonl", folder / "copies"
    code, said, err = caption(folder, "--out", out, "--embed", "exif,xmp,iptc", "--into", into)
    assert code == 0 and "6 copies with a description" in said and "1 not copied" in said and "no place for iptc of PNG in 2" in said
    assert "h.gif: not copied: no place for exif, xmp, iptc in this format" in err
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    for record in lines(out):
        if "error" not in record and record["image"] != "h.gif":
            with Image.open(into / record["image"]) as copy:
                assert copy.getexif()[0x010E] == record["description"]
    (into / "f.jpg").write_bytes(b"mine")
    (into / "a.jpg").unlink()
    code, said, _ = caption(folder, "--out", out, "--embed", "exif,xmp,iptc", "--into", into)
    assert "1 copies with a description" in said and "5 were there before" in said and "7 captioned (7 of them before)" in said
    assert (into / "f.jpg").read_bytes() == b"mine" and (into / "a.jpg").exists()


def test_a_copy_never_replaces_an_original(caption, folder):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    caption(folder / "a.jpg", folder / "f.jpg", "--embed", "xmp", "--into", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_picture_with_the_longest_name_that_there_is_has_its_copy(caption, tmp_path):
    name = "猫" * 83 + "a.jpg"
    assert len(name.encode()) == 254
    place, into = folder_of(tmp_path / "photos", [name, "z.jpg"]), tmp_path / "copies"
    code, said, _ = caption(place, "--embed", "xmp", "--into", into)
    assert code == 0 and "2 copies with a description" in said and sorted(os.listdir(into)) == sorted([name, "z.jpg"])


@pytest.mark.parametrize("cannot_clean", [False, True])
def test_a_copy_that_cannot_be_written_is_one_sentence_and_leaves_nothing(folder, monkeypatch, cannot_clean):
    def failing(*arguments, **more):
        raise OSError(28, "No space left on device")

    into = folder.parent / "copies"
    monkeypatch.setattr(shutil, "copymode", failing)
    if cannot_clean:
        monkeypatch.setattr(type(into), "unlink", failing)
    with pytest.raises(UserError, match="a.jpg cannot be written .No space left"):
        Copies(into, ["xmp"], False).add("a.jpg", str(folder / "a.jpg"), {"caption": "a dog", "description": "A dog."})
    assert cannot_clean or not os.listdir(into)


def test_two_that_write_to_one_folder_are_not_in_each_others_way(folder, monkeypatch):
    record, into, copymode = {"caption": "a dog", "description": "A dog."}, folder.parent / "copies", shutil.copymode

    def meanwhile(*arguments):
        monkeypatch.setattr(shutil, "copymode", copymode)
        Copies(into, ["xmp"], False).add("a.jpg", str(folder / "a.jpg"), record | {"description": "A much longer description."})
        copymode(*arguments)

    monkeypatch.setattr(shutil, "copymode", meanwhile)
    Copies(into, ["xmp"], False).add("a.jpg", str(folder / "a.jpg"), record)
    assert os.listdir(into) == ["a.jpg"] and b"A dog." in (into / "a.jpg").read_bytes()


def blocks_of(content: bytes):
    return container_of(content).read(content, ["exif", "xmp", "iptc"])


def compressed(content: bytes) -> bytes | list:
    """The picture without its metadata, as it is compressed."""
    match container_of(content).name:
        case "JPEG":
            segments, pixels = jpeg_segments(content)
            return [*(segment for segment in segments if not 0xE0 <= segment[1] <= 0xEF), pixels]
        case "PNG":
            return [chunk for chunk in png_chunks(content)[0] if chunk[4:8] not in (b"eXIf", b"iTXt")]
        case _:
            return [chunk for chunk in webp_chunks(content)[0] if chunk[0] not in (b"VP8X", b"EXIF", b"XMP ")]


def exif_of(**tags) -> bytes:
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x0110: "A camera", **tags.get("first", {})})
    exif.get_ifd(0x8769).update({0x927C: b"MAKER\0notes whose place matters", 0x9003: "2020:01:02 03:04:05"})
    return exif.tobytes()


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PLAIN = {
    "jpeg": lambda: encoded("JPEG"),
    "jpeg of a camera": lambda: encoded("JPEG", exif=exif_of(), icc_profile=PROFILE, progressive=True, comment=b"mine"),
    "png": lambda: encoded("PNG"),
    "png of a camera": lambda: encoded("PNG", exif=exif_of(), icc_profile=PROFILE),
    "webp": lambda: encoded("WEBP"),
    "webp without loss": lambda: encoded("WEBP", lossless=True),
    "webp of a camera": lambda: encoded("WEBP", exif=exif_of(), icc_profile=PROFILE),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_description_comes_back_and_the_pixels_stay_byte_for_byte(name):
    content = PLAIN[name]()
    its = described(content, TEXT, ["exif", "xmp", "iptc"])
    assert compressed(its.content) == compressed(content) and not its.kept
    with Image.open(BytesIO(content)) as before, Image.open(BytesIO(its.content)) as after:
        assert after.tobytes() == before.tobytes() and after.size == before.size
        assert after.info.get("icc_profile") == before.info.get("icc_profile") and after.info.get("comment") == before.info.get("comment")
        assert after.getexif().pop(0x010E).encode("latin-1").decode() == TEXT or after.getexif()[0x010E] == TEXT
        old, new = before.getexif(), after.getexif()
        assert {tag: new[tag] for tag in old if tag != 0x8769} == {tag: old[tag] for tag in old if tag != 0x8769}
        assert new.get_ifd(0x8769) == old.get_ifd(0x8769)
    xmp = Xmp.read(blocks_of(its.content)["xmp"])
    assert list(xmp.texts.values()) == [TEXT, TEXT]
    if "jpeg" in name:
        iptc = Iptc.read(blocks_of(its.content)["iptc"])
        assert iptc.description() == TEXT and iptc.is_utf_8()
    else:
        assert its.without == ["iptc"]
    again = described(its.content, "Another.", ["exif", "xmp", "iptc"])
    assert again.content == its.content and again.kept == [kind for kind in ("exif", "xmp", "iptc") if kind not in its.without]
    other = described(its.content, "Another.", ["exif", "xmp", "iptc"], overwrite=True).content
    blocks = blocks_of(other)
    assert Exif.read(blocks["exif"]).description() == "Another." and set(Xmp.read(blocks["xmp"]).texts.values()) == {"Another."}
    assert b"Hund" not in blocks["xmp"] and compressed(other) == compressed(content)


def test_exif_is_added_to_and_never_moved():
    """Notes of a camera's maker hold offsets that nobody else knows."""
    block = exif_of().removeprefix(b"Exif\0\0")
    for text in ("A dog.", "ab", ""):
        new = Exif.read(block).described(text)
        assert new[8 : len(block)] == block[8:] and Exif.read(new).description() == text
        tags = [Exif.read(new).tag(entry) for entry in Exif.read(new).entries]
        assert tags == sorted(tags) and len(set(tags)) == len(tags)


def test_xmp_is_added_to_and_every_other_byte_stays():
    packet = (
        '<?xpacket begin="" id="x"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<r:Description r:about="uuid:1&amp;2" xmlns:t="{DC}" xmlns:q="urn:q" q:odd="a > b">'
        '<t:title><r:Alt><r:li xml:lang="x-default">T</r:li>'
        '</r:Alt></t:title><t:description><r:Alt><r:li xml:lang="de">  </r:li></r:Alt></t:description></r:Description></r:RDF></x:xmpmeta>'
        f'{" " * 200}<?xpacket end="w"?>'
    ).encode()
    new, keeps = Xmp.read(packet).described(TEXT, overwrite=False)
    start, end = new.index(b"<rdf:Description"), new.index(b"</r:RDF>")
    empty = packet[packet.index(b"<t:description>") : packet.index(b"</r:Description>")]
    assert not keeps and new[:start] + new[end:] == packet.replace(empty, b"") and Xmp.read(new).about == "uuid:1&2"
    assert list(Xmp.read(new).texts.values()) == [TEXT, TEXT]
    own = packet.replace(b'"de">  <', b'"de">Mein Bild<')
    new, keeps = Xmp.read(own).described(TEXT, overwrite=False)
    assert keeps and Xmp.read(new).texts == {f"{DC} description": "Mein Bild", **dict([list(Xmp.read(new).texts.items())[-1]])}
    assert "Mein Bild" not in Xmp.read(own).described(TEXT, overwrite=True)[0].decode()


def packet_with(properties: str) -> bytes:
    return (
        f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="{RDF}"><r:Description xmlns:t="{DC}">'
        f"{properties}</r:Description></r:RDF></x:xmpmeta>"
    ).encode()


@pytest.mark.parametrize("empty", ["<t:description/>", '<t:description t:odd="a > b/>" />', "<t:description></t:description>"])
@pytest.mark.parametrize("behind", ["<t:title>T</t:title>", " \n<!-- > --><t:title>T</t:title>", "", "<t:title/>"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_empty_description_is_taken_out_and_its_neighbours_stay(empty, behind, overwrite):
    packet = packet_with(f"<t:creator>C</t:creator>{empty}{behind}")
    new, keeps = Xmp.read(packet).described(TEXT, overwrite)
    start, end = new.index(b"<rdf:Description"), new.index(b"</r:RDF>")
    assert not keeps and new[:start] + new[end:] == packet.replace(empty.encode(), b"")
    assert list(Xmp.read(new).texts.values()) == [TEXT, TEXT]


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ("<a>\n" * 30_000 + "</a>\n" * 30_000, "nested too deeply"),
        (" " * 5_000_000, "larger than 4 MB"),
        ("<t:description>Mine.</t:description><t:description/>", "two descriptions"),
    ],
)
def test_a_packet_made_to_be_slow_or_misread_is_refused_at_once(properties, said):
    begun = time.process_time()
    with pytest.raises(UserError, match=said):
        Xmp.read(packet_with(properties))
    assert time.process_time() - begun < 1


def test_the_time_for_a_packet_grows_with_its_size_alone():
    """The largest that is taken, made of what takes longest, within seconds."""
    begun = time.process_time()
    xmp = Xmp.read(packet_with("<t:description>" + "a&amp;\n" * 500_000 + "</t:description>"))
    assert xmp.texts == {f"{DC} description": "a&\n" * 500_000} and time.process_time() - begun < 5


def test_a_full_exif_directory_is_refused():
    entries = b"".join(struct.pack(">HHII", 0x8000, 3, 1, 0) for _ in range(0xFFFF))
    block = b"MM\0*\0\0\0\x08\xff\xff" + entries + b"\0\0\0\0"
    with pytest.raises(UserError, match="65,535 entries"):
        Exif.read(block).described(TEXT)
    block = b"MM\0*\0\0\0\x08\xff\xfe" + entries[12:] + b"\0\0\0\0"
    assert Exif.read(Exif.read(block).described(TEXT)).description() == TEXT


def test_a_packet_that_would_not_be_read_back_is_refused():
    for text in ("\x0b", "a\rb"):  # XML has no such character; this one it would change
        with pytest.raises(UserError, match="cannot be added to"):
            Xmp.read(None).described(text, overwrite=True)
    with pytest.raises(UserError, match="damaged"):  # no place within
        Xmp.read(f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="{RDF}"/></x:xmpmeta>'.encode())


@pytest.mark.parametrize(
    "packet", [b"<x", b"", b"<a/>", b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', b"<\0a\0/\0>\0", b"\xff\xfe<", b"<x:y/>"]
)
def test_a_damaged_packet_is_refused(packet):
    with pytest.raises(UserError, match="its XMP packet"):
        Xmp.read(packet)


def test_iptc_keeps_other_texts_and_never_renames_their_characters():
    latin = data_set((2, 105), "Überschrift".encode("latin-1"))
    keywords = data_set((2, 25), b"one") + data_set((2, 25), b"two")
    other = b"8BIM\x03\xed\0\0\0\0\0\x10" + b"r" * 16
    for sets, text, named in ((latin + keywords, "A dog.", False), (keywords, TEXT, True)):
        block = other + b"8BIM\x04\x04\0\0" + len(sets).to_bytes(4) + sets + b"\0" * (len(sets) % 2) + other
        its = Iptc.read(block).described(text)
        assert its.startswith(other) and its.endswith(other) and Iptc.read(its).is_utf_8() == named
        assert Iptc.read(its).description() == text and [data for key, data in Iptc.read(its).sets if key == (2, 25)] == [
            data_set((2, 25), b"one"), data_set((2, 25), b"two")
        ]  # fmt: skip
    for length in (127, 128, 255):  # the length stands before the text, and is none of it
        ascii = data_set((2, 25), b"k" * length)
        its = Iptc.read(Iptc.read(b"8BIM\x04\x04\0\0" + len(ascii).to_bytes(4) + ascii + b"\0" * (len(ascii) % 2)).described(TEXT))
        assert its.is_utf_8() and its.description() == TEXT
    with pytest.raises(UserError, match="does not name"):
        Iptc.read(b"8BIM\x04\x04\0\0" + len(latin).to_bytes(4) + latin).described(TEXT)
    with pytest.raises(UserError, match="2,000 bytes"):
        Iptc.read(None).described("a" * 2001)


def test_damaged_and_odd_files_are_refused_and_never_written_wrong():
    """Cut anywhere and changed anywhere: a sentence, or a copy whose pixels are those that were there."""
    draws = np.random.default_rng(0)
    for make in PLAIN.values():
        content = described(make(), TEXT, ["exif", "xmp", "iptc"]).content
        places = draws.integers(12, len(content), 60)
        odd = [content[:place] for place in places] + [
            content[:place] + bytes([draws.integers(256)]) + content[place + 1 :] for place in places
        ]
        for broken in odd:
            try:
                its = described(broken, "Other.", ["exif", "xmp", "iptc"], overwrite=True)
            except UserError:
                continue
            assert compressed(its.content)[-1] == compressed(broken)[-1]


def test_a_file_of_several_pictures_keeps_the_distance_between_them():
    content = encoded("JPEG")
    segments, pixels = jpeg_segments(content)
    further = b"\xff\xe2\0\x0aMPF\0abcd"
    several = content[:2] + segments[0] + further + b"".join(segments[1:]) + pixels
    its = described(several, TEXT, ["exif", "xmp", "iptc"]).content
    assert its.partition(further)[2] == several.partition(further)[2]
    late = jpeg_with(content, {"xmp": Xmp.read(None).described("", True)[0]})
    late = late[:2] + further + late[2:]
    with pytest.raises(UserError, match="several pictures"):
        described(late, TEXT, ["xmp"], overwrite=True)


def test_a_block_that_jpeg_cannot_hold_is_refused():
    with pytest.raises(UserError, match="64 kB"):
        described(encoded("JPEG"), "a" * 70_000, ["exif"])


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("keyword", "refused"), [("exif", ["exif"]), ("APP1", ["exif", "xmp"]), ("xmp", ["xmp"]), ("icc", [])])
def test_a_block_in_a_text_of_a_png_is_not_hidden_by_a_new_one(keyword, refused, compress):
    """ImageMagick keeps EXIF there; readers prefer a chunk of its own, and what it does not say (the orientation) would be lost."""
    info = PngImagePlugin.PngInfo()
    info.add_text(f"Raw profile type {keyword}", f"\nexif\n{len(exif_of()):8}\n{exif_of().hex()}\n", zip=compress)
    content = encoded("PNG", pnginfo=info)
    for kind in ("exif", "xmp"):
        if kind in refused:
            with pytest.raises(UserError, match=f"its {kind.upper()} block is in a text"):
                described(content, TEXT, [kind], overwrite=True)
            continue
        with Image.open(BytesIO(content)) as before, Image.open(BytesIO(described(content, TEXT, [kind]).content)) as after:
            assert after.getexif().get(0x0112) == before.getexif().get(0x0112) and after.text.items() >= before.text.items()


def test_a_block_of_another_kind_may_be_in_several_parts():
    content = described(encoded("JPEG"), "Mine.", ["exif", "xmp", "iptc"]).content
    segments, pixels = jpeg_segments(content)
    for kind, head in (("exif", b"Exif"), ("xmp", b"http"), ("iptc", b"Photoshop")):
        double = [segment for segment in segments for _ in range(1 + segment.startswith(head, 4))]
        assert len(double) == len(segments) + 1
        several = content[:2] + b"".join(double) + pixels
        others = [its for its in ("exif", "xmp", "iptc") if its != kind]
        new = described(several, TEXT, others, overwrite=True).content
        assert jpeg_segments(new)[0].count(next(its for its in segments if its.startswith(head, 4))) == 2
        with pytest.raises(UserError, match=f"its {kind.upper()} block is in several parts"):
            described(several, TEXT, [*others, kind], overwrite=True)


def test_a_compressed_packet_in_a_png_is_read():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", Xmp.read(None).described("Mine.", True)[0].decode(), zip=True)
    its = described(encoded("PNG", pnginfo=info), TEXT, ["xmp"])
    assert its.kept == ["xmp"] and b"Mine." in described(encoded("PNG", pnginfo=info), TEXT, ["exif", "xmp"]).content


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="no exiftool here")
def test_exiftool_reads_what_was_written_and_finds_no_fault(tmp_path):
    suffix = {"jpe": "jpg", "png": "png", "web": "webp"}
    for number, (name, make) in enumerate(PLAIN.items()):
        content = described(make(), TEXT, ["exif", "xmp", "iptc"]).content
        (tmp_path / f"{number}.{suffix[name[:3]]}").write_bytes(content)
    command = ["exiftool", "-j", "-G1", "-a", "-validate", "-warning", "-error", "-all", str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)
    assert len(found) == len(PLAIN)
    for its in found:
        assert its["IFD0:ImageDescription"] == its["XMP-dc:Description"] == its["XMP-iptcCore:AltTextAccessibility"] == TEXT
        assert "IPTC:Caption-Abstract" not in its or its["IPTC:Caption-Abstract"] == TEXT
        assert ("IPTC:Caption-Abstract" in its) == its["SourceFile"].endswith(".jpg")
        assert "ExifTool:Error" not in its and "damage" not in its.get("ExifTool:Warning", "").lower(), its
