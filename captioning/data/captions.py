"""Captions of images in anybody's file, by image id: COCO's and Karpathy's JSON, plain JSON, JSON lines, CSV, Flickr's tokens."""

from pathlib import Path
from typing import Any

from captioning.data.annotations import token_file
from captioning.data.files import checked_caption, csv_header, csv_rows, parsed, read_lines, read_text, shown, unwritable
from captioning.errors import UserError

IDS = ("image_id", "image", "id", "filename", "file_name")
FORMATS = (
    '{"id": "caption"}, {"id": ["caption", ...]}, [{"image_id": ..., "caption": ...}], COCO\'s and Karpathy\'s annotations, JSON lines, '
    "CSV with a header, or IMAGE#NUMBER<tab>CAPTION"
)


def read_captions(path: Path) -> dict[str, list[str]]:
    """All captions of each image, in the order of the file. Ids are strings: COCO's 42 is "42"."""
    if path.suffix == ".csv":
        header = csv_header(path)
        key = next((name for name in IDS if name in header), "image_id")
        return grouped(path, [(f"line {line}", row, key) for line, row in csv_rows(path, key, "caption")])
    if path.suffix in (".txt", ".token"):
        return dict(token_file(path).texts)
    if path.suffix == ".jsonl":
        lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
        return grouped(path, [(f"line {number}", parsed(path, line, number), None) for number, line in lines])
    content = parsed(path, read_text(path))
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        content = content["annotations"]
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        content = [row for image in content["images"] for row in of_karpathy(image)]
    if isinstance(content, list):
        return grouped(path, [(f"item {number}", row, None) for number, row in enumerate(content)])
    texts = {name: [its] if isinstance(its, str) else its for name, its in content.items()} if isinstance(content, dict) else {"": None}
    result = {}
    for name, its in texts.items():
        if not (isinstance(its, list) and its and all(isinstance(text, str) for text in its)):
            raise UserError(f"{path}: no captions at {shown(name)}; allowed: {FORMATS}")
        result[checked_id(name, str(path))] = [checked_caption(text, f"{path} image {shown(name)}") for text in its]
    return result


def of_karpathy(image: Any) -> list[dict[str, Any]]:
    """Rows as COCO has them; one without a caption, which is refused, for what is not of the format."""
    sentences = image.get("sentences") if isinstance(image, dict) else None
    if not isinstance(sentences, list):
        return [{}]
    return [{"image_id": image.get("filename"), "caption": its.get("raw") if isinstance(its, dict) else None} for its in sentences]


def other_names(path: Path) -> dict[str, str]:
    """Further names of images -> their ids in `read_captions`: COCO's file names, and the COCO ids in Karpathy's file."""
    content = parsed(path, read_text(path)) if path.suffix == ".json" else None
    images = content.get("images") if isinstance(content, dict) else None
    pairs = [(image.get("file_name"), image.get("id")) for image in images or [] if isinstance(image, dict)]
    pairs += [(image.get("cocoid"), image.get("filename")) for image in images or [] if isinstance(image, dict)]
    return {str(name): str(image_id) for name, image_id in pairs if None not in (name, image_id)}


def grouped(path: Path, rows: list[tuple[str, Any, str | None]]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for where, row, key in rows:
        key = key or (next((name for name in IDS if name in row), None) if isinstance(row, dict) else None)
        if key is None or not isinstance(row.get("caption"), str) or row[key] in (None, ""):
            raise UserError(f"{path} {where}: no image id ({', '.join(IDS)}) or no caption; allowed: {FORMATS}")
        image_id = checked_id(row[key], f"{path} {where}")
        texts.setdefault(image_id, []).append(checked_caption(row["caption"], f"{path} {where}"))
    return texts


def checked_id(image_id: Any, where: str) -> str:
    """A name or a number, which no file is read by."""
    if not isinstance(image_id, str | int) or isinstance(image_id, bool):
        raise UserError(f"{where}: the image id is {shown(image_id)}; a text or a whole number is needed")
    if problem := unwritable(str(image_id)):
        raise UserError(f"{where}: the image id holds {problem}")
    return str(image_id)
