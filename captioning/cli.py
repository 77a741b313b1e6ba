"""The command `captioning`: what its parts take. `commands.py` says what they do."""

import argparse
import os
from pathlib import Path

from captioning import commands
from captioning.errors import plain_errors


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="captioning", description="Caption files, serve, score, compare and report, check data, keep features."
    )
    parts = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    caption = parts.add_parser("caption", help="caption image files and whole folders with a trained run")
    caption.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, and patterns in quotes as in 'photos/**/*.jpg'")
    caption.add_argument("--run", required=True, type=Path, help="the run directory")
    caption.add_argument("--beam-size", type=int, default=3)
    caption.add_argument("--max-length", type=int, default=30)
    caption.add_argument("--batch-size", type=int, default=16, help="pictures at once (default: %(default)s)")
    caption.add_argument("--n-best", action="store_true", help="all captions of the beam with their log p")
    caption.add_argument("--attention", type=Path, metavar="OUT.png", help="draw where each word looked")
    caption.add_argument("--device", default="auto")
    caption.add_argument("--json", action="store_true", help="one JSON object for all images")
    caption.add_argument("--out", type=Path, metavar="FILE.jsonl", help="keep them there, a line each; the same command goes on")
    caption.add_argument("--alt-csv", type=Path, metavar="FILE.csv", help="alt texts: image,alt_text")
    caption.add_argument("--embed", default="", metavar="exif,xmp,iptc", help="copy the pictures, with their description within")
    caption.add_argument("--into", type=Path, metavar="DIR", help="where the copies go")
    caption.add_argument("--overwrite", action="store_true", help="in the copies, descriptions that are there already")

    demo = parts.add_parser("demo", help="a page in the browser: upload a picture, read its caption and where each word looked")
    demo.add_argument("--run", required=True, action="append", type=Path, help="a run directory; repeat it to choose among models")
    demo.add_argument("--host", default="127.0.0.1", help="0.0.0.0: whoever can reach this machine (default: %(default)s)")
    demo.add_argument("--port", type=int, default=7860)
    demo.add_argument("--examples", type=Path, metavar="DIR", help="pictures to choose from; default: test images, if the data is here")
    demo.add_argument("--device", default="auto")

    publish = parts.add_parser("publish", help="a folder to be pushed to the Hugging Face Hub: the run, its card and its demo")
    publish.add_argument("run", type=Path, metavar="RUN")
    publish.add_argument("folder", type=Path, metavar="DIR")
    publish.add_argument("--kind", choices=["model", "space"], default="model", help="whose card README.md is (default: %(default)s)")
    publish.add_argument("--name", help="of the model, in the card and on the page; default: the run directory's")
    publish.add_argument("--license", metavar="ID", help="of the weights, as the Hub names it: mit, cc-by-nc-4.0, ...")
    publish.add_argument(
        "--overwrite", action="store_true", help="what was published into DIR before; with other files there it is refused"
    )

    check = parts.add_parser(
        "check-data", help="counts, broken images, bad captions, leaks: `captioning check-data data=own data.root=DIR`"
    )
    check.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    check.add_argument("--most", type=int, default=10, help="problems of a kind to list (all are counted)")

    extract = parts.add_parser("extract", help="a frozen encoder's features of all images, once for many runs")
    extract.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")

    report = parts.add_parser("report", help="one HTML file about an evaluated run, or about two beside each other")
    report.add_argument("run", type=Path, metavar="RUN", help="a run directory, after eval.py")
    report.add_argument("other", nargs="?", type=Path, metavar="OTHER", help="another, evaluated on the same images")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    report.add_argument("--data-root", type=Path, metavar="DIR", help="where the pictures are, when they were moved")
    report.add_argument("--examples", type=int, default=12, help="best, worst and random captions: so many of each")
    report.add_argument("--device", default="auto")

    gallery = parts.add_parser("gallery", help="one HTML file of pictures chosen by a rule, with what each of the runs says of them")
    gallery.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories or evaluations below them, of the same images")
    gallery.add_argument(
        "--images", type=int, default=24, metavar="N", help="the first N by the SHA-256 of the image's id (default: %(default)s)"
    )
    gallery.add_argument("--out", type=Path, metavar="FILE", help="default: gallery.html in the first RUN")
    gallery.add_argument("--data-root", type=Path, metavar="DIR", help="where the pictures are, when they were moved")

    cache = parts.add_parser("cache", help="features on disk: list them, remove some")
    cache.add_argument("action", choices=["list", "remove"])
    cache.add_argument("keys", nargs="*", metavar="KEY", help="what to remove; --all: everything")
    cache.add_argument("--all", action="store_true")
    cache.add_argument("--dir", type=Path, default=Path(os.environ.get("CAPTIONING_CACHE", "cache")), help="cache.dir of the runs")

    compare = parts.add_parser("compare", help="which is better and by how much: one table over runs, grouped by all but the seed")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, or evaluations in folders below them")
    compare.add_argument("--metric", default="cider,bleu4,rouge_l", metavar="M,M", help="default: %(default)s")
    compare.add_argument("--by", default="", metavar="KEY,KEY", help="make groups by these settings alone, as in decoder,decoder.injection")
    compare.add_argument("--baseline", metavar="GROUP", help="a group's name in the table; default: the first run's group")
    compare.add_argument("--out", action="append", default=[], type=Path, metavar="FILE", help=".csv, .md, .tex or .html; may be repeated")
    compare.add_argument("--resamples", type=int, default=2000, help="drawings of the images (default: %(default)s)")
    compare.add_argument("--no-timing", action="store_true", help="leave out the milliseconds an image")
    compare.add_argument("--device", default="auto", help="that is timed")
    compare.add_argument("--force", action="store_true", help="compare where signatures differ, with a warning")

    score = parts.add_parser("score", help="metrics of anybody's captions: `captioning score captions.json references.json`")
    score.add_argument("captions", type=Path, help="one caption an image, or several candidates, the first of which is scored")
    score.add_argument("references", type=Path, help="JSON (plain, COCO's, Karpathy's), JSON lines, CSV, or Flickr's token file")
    score.add_argument("--json", action="store_true", help="one JSON object, with the keys of metrics.json")
    score.add_argument("--audit", action="store_true", help="the same captions under the field's other BLEUs")
    score.add_argument("--java", action="store_true", help="METEOR and SPICE too, where Java is")
    score.add_argument("--training", type=Path, metavar="FILE", help="training captions: the share of captions not among them")
    score.add_argument("--per-image", type=Path, metavar="OUT.json", help="each image's part in every metric")
    score.add_argument("--cider-df", default="corpus", metavar="corpus|FILE", help="document frequencies: of the references, or a file")
    score.add_argument("--save-cider-df", type=Path, metavar="OUT.json[.gz]", help="keep those of the references")

    tokenize = parts.add_parser("tokenize", help="the tokens that the metrics compare, a line for each line of a file")
    tokenize.add_argument("file", metavar="FILE", help="captions in UTF-8, one a line; - reads standard input")

    export = parts.add_parser("export", help="a run as graphs in a folder that captions without PyTorch, or without this package")
    export.add_argument("run", type=Path, metavar="RUN", help="the run directory")
    export.add_argument("--format", choices=["onnx", "torch"], default="onnx", help="torch: torch.export's .pt2 (default: %(default)s)")
    export.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/export-FORMAT; an export there is replaced")
    export.add_argument("--int8", action="store_true", help="ONNX with weights in 8 bits: a third of the size, slightly worse")

    serve = parts.add_parser("serve", help="describe images over HTTP, with a web page")
    serve.add_argument("--run", required=True, type=Path, help="the run directory")
    serve.add_argument("--host", default="127.0.0.1", help="default: %(default)s; 0.0.0.0 is every address of this machine")
    serve.add_argument("--port", type=int, default=5000, help="default: %(default)s; 0 takes a free one")
    serve.add_argument("--device", default="auto")
    serve.add_argument(
        "--deadline", type=float, default=10.0, metavar="S", help="seconds from a request's last byte to its answer (default: %(default)s)"
    )
    serve.add_argument("--queue", type=int, default=128, metavar="N", help="images in the house at once (default: %(default)s)")
    serve.add_argument("--batch", type=int, default=32, metavar="N", help="images described at once (default: %(default)s)")
    serve.add_argument("--max-images", type=int, default=16, metavar="N", help="in one request (default: %(default)s)")
    serve.add_argument("--max-megabytes", type=int, default=10, metavar="N", help="of one request (default: %(default)s)")
    serve.add_argument("--allow-urls", action="store_true", help="fetch images by URL, from public addresses alone")
    serve.add_argument("--allow-host", action="append", default=[], metavar="HOST", help="only from these hosts; *.example.org too")
    serve.add_argument("--cors-origin", action="append", default=[], metavar="URL", help="whose pages may ask; may be repeated")
    serve.add_argument("--api-key-file", type=Path, metavar="FILE", help="asked of all who describe; or CAPTIONING_API_KEY")

    parts.add_parser("doctor", help="versions, device, and what is missing for what")

    options = parser.parse_args(arguments)
    with plain_errors():
        getattr(commands, f"run_{options.command.replace('-', '_')}")(options)


if __name__ == "__main__":
    main()
