"""What `captioning gallery` does: opens evaluated runs and their data, and hands them to the page. No model is loaded."""

from collections.abc import Sequence
from pathlib import Path

from captioning.analysis import page
from captioning.analysis.gallery import GalleryRun, gallery
from captioning.analysis.grouping import grouped, labels
from captioning.build.compare import read_members
from captioning.build.evaluation import run_of
from captioning.build.report import find_pictures, node_in_words
from captioning.build.runs import read_config
from captioning.errors import UserError


def write_gallery(paths: Sequence[Path], *, out: Path | None, data_root: Path | None, images: int) -> Path:
    """The file."""
    for place, path in enumerate(paths):
        if path.resolve() in [before.resolve() for before in paths[:place]]:
            raise UserError(f"{path}: is the same run twice; once is enough")
    members = read_members(paths)
    its = labels(grouped(members))
    runs = [GalleryRun(its[one.path], one.path, node_in_words(one.evaluated.metrics["search"]), one.evaluated) for one in members]
    pictures = find_pictures(read_config(run_of(paths[0])), members[0].evaluated, data_root)
    file = out or paths[0] / "gallery.html"
    page.write(file, gallery(runs, pictures, images))
    return file
