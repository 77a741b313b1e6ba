"""Readers: one function a format, from a folder as it is distributed to `{"train": [Record], "val": ..., "test": ...}`."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from captioning.data.files import (
    checked_caption,
    checked_name,
    csv_rows,
    parsed,
    plain_lines,
    read_json,
    read_lines,
    shown,
)
from captioning.data.records import Captions, Record, Splits, find, split_by_hash, with_records
from captioning.errors import UserError
from captioning.kinds import Number


def token_file(path: Path) -> Captions:
    """`<image>#<number>TAB<caption>`, one a line: the format of Flickr8k and Flickr30k."""
    captions = Captions(path)
    for number, line in plain_lines(path):
        name, tab, caption = line.partition("\t")
        image_id, mark, index = name.rpartition("#")
        if not (tab and mark and index.isdigit()):
            raise UserError(f"{path} line {number}: expected IMAGE#NUMBER<tab>CAPTION, found {shown(line)}")
        captions.add(image_id, caption, number)
    return captions


def flickr8k(root: str | Path) -> Splits:
    """The original distribution: `Flicker8k_Dataset/`, `Flickr8k.token.txt` and the three lists `Flickr_8k.*Images.txt`.

    The text may lie in `Flickr8k_text/` or beside the images. `dev` is called `val` here.
    """
    captions = token_file(find(root, "Flickr8k.token.txt", "Flickr8k_text/Flickr8k.token.txt"))
    folder = find(root, "Flicker8k_Dataset", "Flickr8k_Dataset")
    names = {"train": "trainImages", "val": "devImages", "test": "testImages"}
    lists = {split: find(root, f"Flickr_8k.{name}.txt", f"Flickr8k_text/Flickr_8k.{name}.txt") for split, name in names.items()}
    listed = {split: [line.strip() for _, line in plain_lines(path) if line.strip()] for split, path in lists.items()}
    return with_records(listed, captions, folder)


def flickr8k_kaggle(root: str | Path, val: Number = 1000, test: Number = 1000) -> Splits:
    """As on Kaggle: `Images/` and `captions.txt` (CSV `image,caption`), which has no split: see `split_by_hash`."""
    path = find(root, "captions.txt")
    captions = Captions(path)
    for line, row in csv_rows(path, "image", "caption"):
        captions.add(row["image"], row["caption"], line)
    return with_records(split_by_hash(captions.texts, val, test), captions, find(root, "Images"))


def flickr30k(root: str | Path, val: Number = 1000, test: Number = 1000) -> Splits:
    """`flickr30k-images/` with `results_20130124.token`, or with `results.csv` as on Kaggle (fields between `|`).

    The distribution has no split: see `split_by_hash`. For Karpathy's split use `data=karpathy_flickr30k`.
    """
    path = find(root, "results_20130124.token", "results.csv", "*/results.csv")
    captions = token_file(path) if path.suffix == ".token" else bar_file(path)
    folder = find(root, "flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images", "images")
    return with_records(split_by_hash(captions.texts, val, test), captions, folder)


def bar_file(path: Path) -> Captions:
    """`image| number| caption`. One row of the distributed file lacks its second bar: `2199200615.jpg| 4   A dog runs ...`."""
    captions = Captions(path)
    for number, line in islice(plain_lines(path), 1, None):
        match = re.fullmatch(r"([^|]+)\|\s*\d+\s*(?:\||\s)(.*)", line, flags=re.DOTALL)
        if not match:
            raise UserError(f"{path} line {number}: expected IMAGE| NUMBER| CAPTION, found {shown(line)}")
        captions.add(match[1].strip(), match[2].strip(), number)
    return captions


def karpathy(root: str | Path, file: str = "dataset*.json", images: str = "images", restval: bool = True) -> Splits:
    """Karpathy and Fei-Fei's `dataset_{flickr8k,flickr30k,coco}.json` and the folder of its images.

    COCO's file names folders (`val2014/...`) below `images`. Its `restval` images are trained on unless `restval` is false.
    """
    path = find(root, file)
    folder = find(root, images)
    splits: Splits = {"train": [], "val": [], "test": []}
    for number, image in enumerate(read_json(path, "images")["images"]):
        where = f"{path} image {number}"
        try:
            name, split = checked_name(image["filename"], where), image["split"]
            below = checked_name(f"{image.get('filepath', '')}/{name}".removeprefix("/"), where)
            captions = [checked_caption(its["raw"], f"{where} sentence {index}") for index, its in enumerate(image["sentences"])]
            lines = [its.get("sentid", index) for index, its in enumerate(image["sentences"])]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: not of Karpathy's format ({error})") from None
        if split == "restval":
            split = "train" if restval else ""
        if split and split not in (*splits,):
            raise UserError(f"{where}: split {shown(split)}; allowed: train, restval, val, test")
        if split:
            record = Record(name, folder / below, captions, f"{path.name} sentence", lines)
            splits[split].append(record)
    return splits


def coco(root: str | Path, year: int = 2014) -> Splits:
    """COCO as distributed: `annotations/captions_{train,val}YEAR.json` with `train2014/` and `val2014/`. Its test captions are secret."""
    splits = {}
    for split in ("train", "val"):
        path = find(root, f"annotations/captions_{split}{year}.json", f"captions_{split}{year}.json")
        content = read_json(path, "images", "annotations")
        captions = Captions(path, "annotation")
        names: dict[Any, str] = {}
        items = [(kind, number, item) for kind in ("images", "annotations") for number, item in enumerate(content[kind])]
        for kind, number, item in items:
            where = f"{path} {kind} {number}"
            try:
                if kind == "annotations":
                    captions.add(names[item["image_id"]], item["caption"], item["id"])
                elif names.setdefault(item["id"], checked_name(item["file_name"], where)) != item["file_name"]:
                    raise UserError(f"{where}: the id {shown(item['id'])} is another image's too")
            except KeyError as error:
                raise UserError(f"{where}: not of COCO's format (without {error})") from None
            except TypeError as error:
                raise UserError(f"{where}: not of COCO's format ({error})") from None
        splits[split] = captions.records(names.values(), find(root, f"{split}{year}", f"images/{split}{year}"))
    return splits


def table(root: str | Path, file: str = "captions.*", images: str = "images", val: Number = 0.1, test: Number = 0.1) -> Splits:
    """One's own data: a CSV, or JSON lines, of `image`, `caption` and optionally `split`, one caption a row, beside a folder of images.

    Without a `split` column the images are divided by `split_by_hash`.
    """
    path = find(root, file)
    rows = list(json_rows(path) if path.suffix in (".jsonl", ".json") else csv_rows(path, "image", "caption"))
    captions = Captions(path)
    chosen: dict[str, str] = {}
    for line, row in rows:
        captions.add(row["image"], row["caption"], line)
        split = row.get("split", "")
        if split not in ("", "train", "val", "test"):
            raise UserError(f"{path} line {line}: split {shown(split)}; allowed: train, val, test")
        if chosen.setdefault(row["image"], split) != split:
            raise UserError(f"{path} line {line}: image {row['image']} is in two splits, {chosen[row['image']]!r} and {split!r}")
    if not any(chosen.values()):
        return with_records(split_by_hash(chosen, val, test), captions, find(root, images))
    if unsplit := next((image_id for image_id, split in chosen.items() if not split), None):
        raise UserError(f"{path} line {captions.lines[unsplit][0]}: image {unsplit} has no split, others have")
    by_split = {split: [name for name, its in chosen.items() if its == split] for split in ("train", "val", "test")}
    return with_records(by_split, captions, find(root, images))


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        row = parsed(path, line, number)
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("image", "caption")):
            raise UserError(f'{path} line {number}: expected {{"image": "...", "caption": "..."}}, found {shown(line)}')
        yield number, row
