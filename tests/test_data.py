"""Readers, on files laid out as the real distributions have them; vocabulary; order; pictures."""

import gc
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import flickr8k_root, pictures

from captioning.data import annotations
from captioning.data.check import check_splits, summary
from captioning.data.dataset import ImageSource, ReferenceBatches, ReferenceImages, TrainingBatches, TrainingCaptions, loader
from captioning.data.records import split_by_hash
from captioning.data.sampler import batches
from captioning.data.shapes import PAIRS, held_out, shapes
from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary, words
from captioning.errors import UserError


def ids(splits):
    return {split: [record.image_id for record in records] for split, records in splits.items()}


def flickr8k_folder(root: Path, text: str = "Flickr8k_text") -> Path:
    pictures(root / "Flicker8k_Dataset", "a.jpg", "b.jpg", "c.jpg")
    folder = root / text
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}.jpg#{i}\tA dog {i} , on grass ." for name in "abc" for i in range(5)] + ["z.jpg.1#0\tIn no split ."]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    for split, name in (("train", "a"), ("dev", "b"), ("test", "c")):
        (folder / f"Flickr_8k.{split}Images.txt").write_text(f"{name}.jpg\n")
    return root


@pytest.mark.parametrize("text", ["Flickr8k_text", "."])
def test_flickr8k_as_distributed(tmp_path, text):
    splits = annotations.flickr8k(flickr8k_folder(tmp_path, text))
    assert ids(splits) == {"train": ["a.jpg"], "val": ["b.jpg"], "test": ["c.jpg"]}
    record = splits["val"][0]
    assert record.captions[1] == "A dog 1 , on grass ." and record.where(1) == "Flickr8k.token.txt line 7" and record.path.exists()


def test_flickr8k_as_on_kaggle(tmp_path):
    names = [f"{i}.jpg" for i in range(20)]
    pictures(tmp_path / "Images", *names)
    rows = [f'{name},"A dog , number {i} ."' for name in names for i in range(2)]
    (tmp_path / "captions.txt").write_text("\n".join(["image,caption", *rows]) + "\n")
    splits = annotations.flickr8k_kaggle(tmp_path, val=3, test=4)
    assert {split: len(its) for split, its in ids(splits).items()} == {"train": 13, "val": 3, "test": 4}
    assert splits["test"][0].captions == ["A dog , number 0 .", "A dog , number 1 ."]


@pytest.mark.parametrize("form", ["token", "kaggle"])
def test_flickr30k(tmp_path, form):
    names = [f"{i}.jpg" for i in range(10)]
    if form == "token":
        pictures(tmp_path / "flickr30k-images", *names)
        (tmp_path / "results_20130124.token").write_text("".join(f"{n}#{i}\tA dog .\n" for n in names for i in range(5)))
    else:
        pictures(tmp_path / "flickr30k_images" / "flickr30k_images", *names)
        rows = [f"{n}| {i}| A dog ." for n in names for i in range(5)]
        rows[7] = f"{names[1]}| 2   A dog ."  # the distributed file has one such row
        (tmp_path / "flickr30k_images" / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows]))
    splits = annotations.flickr30k(tmp_path, val=2, test=0.3)
    assert {split: len(its) for split, its in splits.items()} == {"train": 5, "val": 2, "test": 3}
    assert all(record.captions == ["A dog ."] * 5 and record.path.exists() for its in splits.values() for record in its)


def karpathy_file(path: Path, rows) -> None:
    images = [
        {
            "filename": name,
            "split": split,
            "sentences": [{"raw": f"A {name}.", "sentid": 7}],
            **({"filepath": folder} if folder else {}),
        }
        for name, split, folder in rows
    ]
    path.write_text(json.dumps({"images": images, "dataset": "x"}))


def test_karpathys_json(tmp_path):
    pictures(tmp_path / "val2014", "v.jpg", "r.jpg", "s.jpg")
    pictures(tmp_path / "train2014", "t.jpg")
    rows = [
        ("v.jpg", "val", "val2014"),
        ("r.jpg", "restval", "val2014"),
        ("s.jpg", "test", "val2014"),
        ("t.jpg", "train", "train2014"),
    ]
    karpathy_file(tmp_path / "dataset_coco.json", rows)
    splits = annotations.karpathy(tmp_path, "dataset_coco.json", ".")
    assert ids(splits) == {"train": ["r.jpg", "t.jpg"], "val": ["v.jpg"], "test": ["s.jpg"]}
    assert all(record.path.exists() for its in splits.values() for record in its)
    assert ids(annotations.karpathy(tmp_path, images=".", restval=False))["train"] == ["t.jpg"]
    karpathy_file(tmp_path / "dataset_flickr8k.json", [("a.jpg", "train", "")])
    assert annotations.karpathy(tmp_path, "dataset_flickr8k.json", "val2014")["train"][0].path == tmp_path / "val2014" / "a.jpg"
    karpathy_file(tmp_path / "dataset_bad.json", [("a.jpg", "trial", "")])
    with pytest.raises(UserError, match="image 0: split 'trial'; allowed: train, restval, val, test"):
        annotations.karpathy(tmp_path, "dataset_bad.json", "val2014")


def test_coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        name = f"COCO_{split}2014_000000000001.jpg"
        pictures(tmp_path / f"{split}2014", name)
        content = {
            "images": [{"id": 1, "file_name": name}],
            "annotations": [{"id": 9, "image_id": 1, "caption": "A dog."}],
        }
        (tmp_path / "annotations" / f"captions_{split}2014.json").write_text(json.dumps(content))
    splits = annotations.coco(tmp_path)
    assert ids(splits) == {split: [f"COCO_{split}2014_000000000001.jpg"] for split in ("train", "val")}
    assert splits["val"][0].where(0) == "captions_val2014.json annotation 9" and splits["val"][0].path.exists()


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_ones_own_table(tmp_path, form):
    pictures(tmp_path / "images", "a.jpg", "sub/b.jpg", "c.jpg")
    rows = [
        ("a.jpg", "A dog, running", "train"),
        ("a.jpg", 'A "big" dog\nruns', "train"),
        ("sub/b.jpg", "Ein Hund läuft", "val"),
        ("c.jpg", "x", "test"),
    ]
    if form == "csv":
        quote = lambda text: '"' + text.replace('"', '""') + '"'  # noqa: E731
        text = "image,caption,split\n" + "".join(f"{image},{quote(caption)},{split}\n" for image, caption, split in rows)
    else:
        text = "".join(json.dumps(dict(zip(("image", "caption", "split"), row))) + "\n" for row in rows)
    (tmp_path / f"captions.{form}").write_text(text, encoding="utf-8")
    splits = annotations.table(tmp_path)
    assert ids(splits) == {"train": ["a.jpg"], "val": ["sub/b.jpg"], "test": ["c.jpg"]}
    assert splits["train"][0].captions == ["A dog, running", 'A "big" dog\nruns']
    assert splits["val"][0].captions == ["Ein Hund läuft"] and splits["val"][0].lines == [5 if form == "csv" else 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,caption\na.jpg,one, two\n", "line 2: 3 fields where the header has 2"),
        ("picture,caption\na.jpg,x\n", "line 1: no column image"),
        ("image,caption,split\na.jpg,x,trial\n", "line 2: split 'trial'; allowed: train, val, test"),
        ("image,caption,split\na.jpg,x,train\na.jpg,y,val\n", "line 3: image a.jpg is in two splits"),
        ("image,caption,split\na.jpg,x,train\nb.jpg,y,\n", "line 3: image b.jpg has no split"),
        ('image,caption\na.jpg,"open\n', "line 2: not CSV"),
    ],
)
def test_a_bad_table_is_refused_by_line(tmp_path, text, message):
    pictures(tmp_path / "images", "a.jpg")
    (tmp_path / "captions.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        annotations.table(tmp_path)


def test_a_split_by_hash_ignores_order_and_keeps_images_whole():
    names = [f"{i}.jpg" for i in range(100)]
    assert split_by_hash(names, 0.1, 10) == split_by_hash(names[::-1] * 2, 0.1, 10)
    split = split_by_hash(names, 0.2, 10)
    assert [len(split[name]) for name in ("train", "val", "test")] == [70, 20, 10]
    assert set().union(*split.values()) == set(names)


def test_the_real_flickr8k_is_read_whole(tmp_path):
    root = flickr8k_root()
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    for file in root.glob("Flickr*.txt"):
        (text / file.name).symlink_to(file)
    (tmp_path / "Flicker8k_Dataset").mkdir()
    splits = annotations.flickr8k(tmp_path)
    assert {split: len(records) for split, records in splits.items()} == {"train": 6000, "val": 1000, "test": 1000}
    assert all(len(record.captions) == 5 for records in splits.values() for record in records)
    assert len(Vocabulary.build((c for r in splits["train"] for c in r.captions), 5)) == 2540


def test_the_vocabulary_is_a_function_of_the_captions_and_survives_a_file(tmp_path):
    texts = ["A dog's T-shirt, a cat", "a DOG’s cat", "at&t 3.5"]
    vocabulary = Vocabulary.build(texts)
    assert vocabulary.words == Vocabulary.build(reversed(texts)).words
    assert words(texts[0]) == ["a", "dog's", "t-shirt", "a", "cat"]
    assert vocabulary.decode(vocabulary.encode("A cat! unheard", 9)) == "a cat <unk>"
    assert vocabulary.encode("a a a a", 2) == [1, 4, 4, 2]
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json").words == vocabulary.words
    assert Vocabulary.build(texts, 2).unknown_rate(["a dog's zebra"]) == pytest.approx(1 / 3)


def test_every_caption_is_seen_once_an_epoch_in_an_order_of_seed_and_epoch():
    lengths = [3 + i % 17 for i in range(1000)]
    order = batches(lengths, 16, seed=1, epoch=0)
    assert sorted(index for batch in order for index in batch) == list(range(1000))
    assert order == batches(lengths, 16, seed=1, epoch=0)
    assert order != batches(lengths, 16, seed=1, epoch=1) != batches(lengths, 16, seed=2, epoch=1)
    padding = sum(max(lengths[i] for i in batch) * len(batch) for batch in order) / sum(lengths) - 1
    assert padding < 0.05


def test_two_ranks_together_see_what_one_sees():
    lengths = [3 + i % 7 for i in range(205)]
    one = batches(lengths, 16, seed=1, epoch=3)
    two = [batches(lengths, 16, seed=1, epoch=3, rank=rank, world=2) for rank in range(2)]
    assert len(two[0]) == len(two[1])
    assert [sorted(a + b) for a, b in zip(*two)] == [sorted(batch) for batch in one]


def test_training_goes_on_from_any_batch_with_the_same_augmentation(drawings):
    splits = shapes(drawings, 40, 8, 8, 32)
    vocabulary = Vocabulary.build(c for r in splits["train"] for c in r.captions)
    captions = TrainingCaptions(splits["train"], vocabulary, 20, ImageSource(Transform(32, "squash", flip=0.5, zoom=0.3)))
    whole = list(TrainingBatches(captions, 16, seed=1, workers=0).epoch(2))
    rest = list(TrainingBatches(captions, 16, seed=1, workers=2).epoch(2, start=5))
    assert len(rest) == len(whole) - 5
    for a, b in zip(whole[5:], rest):
        assert torch.equal(a.images, b.images) and torch.equal(a.tokens, b.tokens) and a.image_ids == b.image_ids
    other = next(iter(TrainingBatches(captions, 16, seed=2, workers=0).epoch(2)))
    assert not torch.equal(other.tokens[:, :4], whole[0].tokens[:, :4])


@pytest.mark.parametrize("together", [1, 2, 5, 9])
def test_padding_is_what_the_batches_hold_of_it(drawings, together):
    splits = shapes(drawings, 40, 8, 8, 32)
    splits["train"] = [record._replace(captions=record.captions[: 1 + row % 5]) for row, record in enumerate(splits["train"])]
    vocabulary = Vocabulary.build(c for r in splits["train"] for c in r.captions)
    captions = TrainingCaptions(splits["train"], vocabulary, 20, ImageSource(Transform(32)), together)
    batches = TrainingBatches(captions, 16, seed=1, workers=0)
    tokens = [batch.tokens.flatten() for batch in batches.epoch(0)]
    assert batches.padding() == pytest.approx(float((torch.cat(tokens) == Vocabulary.pad).float().mean()))
    spoken = [int((batch == Vocabulary.bos).sum()) for batch in tokens]
    assert sum(spoken) == 8 * 15  # every caption, however many stand together
    assert sorted(spoken)[len(spoken) // 2] >= 10  # and batches about as large as was asked for, 16


@pytest.mark.parametrize("stop", [1, None])
def test_reading_ahead_gives_all_batches_hands_over_errors_and_can_be_left(stop):
    class Items:
        source = SimpleNamespace(reading="ahead")

        def __getitems__(self, keys):
            if keys == [7]:
                raise UserError("seven")
            return keys

    before = threading.active_count()
    assert list(loader(Items(), [[row] for row in range(6)], 2)) == [[row] for row in range(6)]
    with pytest.raises(UserError, match="seven"):
        for batch in loader(Items(), [[row] for row in range(9)], 2):
            if batch == [stop]:
                raise UserError("seven")  # left early
    gc.collect()
    assert threading.active_count() == before


def test_an_evaluation_visits_each_image_once(drawings):
    splits = shapes(drawings, 40, 8, 8, 32)
    vocabulary = Vocabulary.build(c for r in splits["train"] for c in r.captions)
    images = ReferenceImages(splits["val"], vocabulary, 20, ImageSource(Transform(32)))
    seen = [batch for rank in range(3) for batch in ReferenceBatches(images, 2, workers=0, rank=rank, world=3)]
    assert sorted(name for batch in seen for name in batch.image_ids) == sorted(r.image_id for r in splits["val"])
    assert all(len(batch.tokens) == 5 * len(batch.image_ids) for batch in seen)


def test_drawings_are_the_same_everywhere_and_hold_pairs_out(drawings, tmp_path):
    here, there = shapes(drawings, 40, 8, 8, 32), shapes(tmp_path, 40, 8, 8, 32)
    for split in here:
        for a, b in zip(here[split], there[split]):
            assert a.captions == b.captions and a.path.read_bytes() == b.path.read_bytes()
            assert len(set(a.captions)) == 5
    trained, val, test = (set(held_out(split)) for split in ("train", "val", "test"))
    assert trained | val | test == set(PAIRS) and not trained & val and not trained & test and not val & test
    for pairs in (val, test):
        assert {colour for colour, _ in pairs} <= {colour for colour, _ in trained}
        assert {shape for _, shape in pairs} <= {shape for _, shape in trained}
    seen = " ".join(caption for record in here["train"] for caption in record.captions)
    assert not [pair for pair in val | test if f"{pair[0]} {pair[1]}" in seen]


def test_check_data_finds_what_would_make_training_wrong(tmp_path):
    flickr8k_folder(tmp_path)
    folder = tmp_path / "Flicker8k_Dataset"
    assert not [p for p in check_splits(annotations.flickr8k(tmp_path)) if p.is_fatal]
    (folder / "b.jpg").write_bytes((folder / "a.jpg").read_bytes())  # leaks from train into val
    (folder / "c.jpg").write_text("broken")
    text = tmp_path / "Flickr8k_text" / "Flickr8k.token.txt"
    lines = text.read_text().split("\n")
    lines[5], lines[6] = "b.jpg#0\t .", lines[7]
    text.write_text("\n".join(lines))
    problems = check_splits(annotations.flickr8k(tmp_path))
    kinds = {problem.kind: problem for problem in problems}
    assert set(kinds) == {"shared image", "broken image", "empty caption", "duplicate caption"}
    assert kinds["shared image"].is_fatal and "b.jpg (val)" in kinds["shared image"].what
    assert kinds["empty caption"].where == "Flickr8k.token.txt line 6"
    assert kinds["duplicate caption"].where == "Flickr8k.token.txt line 8"
    (folder / "a.jpg").unlink()
    assert "missing image" in {problem.kind for problem in check_splits(annotations.flickr8k(tmp_path))}
    assert "train        1 images" in summary(annotations.flickr8k(tmp_path), 1)[0]
