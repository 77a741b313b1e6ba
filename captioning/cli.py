"""`captioning COMMAND`: thin, and quick with --help: what is heavy is imported where it is used."""

import argparse
import json
import os
import sys
from pathlib import Path

from captioning.errors import UserError, plain_errors


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="captioning", description="Caption files, check data, keep features, look at the installation.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    caption = commands.add_parser("caption", help="caption image files with a trained run")
    caption.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    caption.add_argument("--run", required=True, type=Path, help="the run directory")
    caption.add_argument("--beam-size", type=int, default=3)
    caption.add_argument("--max-length", type=int, default=30)
    caption.add_argument("--n-best", action="store_true", help="all captions of the beam with their log p")
    caption.add_argument("--attention", type=Path, metavar="OUT.png", help="draw where each word looked")
    caption.add_argument("--device", default="auto")
    caption.add_argument("--json", action="store_true", help="one JSON object for all images")

    check = commands.add_parser(
        "check-data", help="counts, broken images, bad captions, leaks: `captioning check-data data=own data.root=DIR`"
    )
    check.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    check.add_argument("--most", type=int, default=10, help="problems of a kind to list (all are counted)")

    extract = commands.add_parser("extract", help="a frozen encoder's features of all images, once for many runs")
    extract.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")

    report = commands.add_parser("report", help="one HTML file about an evaluated run, or about two beside each other")
    report.add_argument("run", type=Path, metavar="RUN", help="a run directory, after eval.py")
    report.add_argument("other", nargs="?", type=Path, metavar="OTHER", help="another, evaluated on the same images")
    report.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    report.add_argument("--data-root", type=Path, metavar="DIR", help="where the pictures are, when they were moved")
    report.add_argument("--examples", type=int, default=12, help="best, worst and random captions: so many of each")
    report.add_argument("--device", default="auto")

    cache = commands.add_parser("cache", help="features on disk: list them, remove some")
    cache.add_argument("action", choices=["list", "remove"])
    cache.add_argument("keys", nargs="*", metavar="KEY", help="what to remove; --all: everything")
    cache.add_argument("--all", action="store_true")
    cache.add_argument("--dir", type=Path, default=Path(os.environ.get("CAPTIONING_CACHE", "cache")), help="cache.dir of the runs")

    compare = commands.add_parser("compare", help="which is better and by how much: one table over runs, grouped by all but the seed")
    compare.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, trained and evaluated")
    compare.add_argument("--metric", default="cider,bleu4,rouge_l", metavar="M,M", help="default: %(default)s")
    compare.add_argument("--by", default="", metavar="KEY,KEY", help="make groups by these settings alone, as in decoder,decoder.injection")
    compare.add_argument("--baseline", metavar="GROUP", help="a group's name in the table; default: the first run's group")
    compare.add_argument("--out", action="append", default=[], type=Path, metavar="FILE", help=".csv, .md, .tex or .html; may be repeated")
    compare.add_argument("--resamples", type=int, default=2000, help="drawings of the images (default: %(default)s)")
    compare.add_argument("--no-timing", action="store_true", help="leave out the milliseconds an image")
    compare.add_argument("--device", default="auto", help="that is timed")
    compare.add_argument("--force", action="store_true", help="compare where signatures differ, with a warning")

    commands.add_parser("doctor", help="versions, device, and what is missing for what")

    options = parser.parse_args(arguments)
    with plain_errors():
        run = {
            "caption": run_caption,
            "check-data": run_check,
            "compare": run_compare,
            "extract": run_extract,
            "report": run_report,
            "cache": run_cache,
            "doctor": run_doctor,
        }
        run[options.command](options)


def run_caption(options: argparse.Namespace) -> None:
    for name in ("beam_size", "max_length"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    import torch

    from captioning.analysis.overlay import stacked
    from captioning.analysis.samples import attention_over, strip
    from captioning.build.runs import load_run
    from captioning.search import Beam
    from captioning.training.distributed import find_device

    device = find_device(options.device)
    run = load_run(options.run, device)
    if options.attention and not run.model.decoder.attends:
        raise UserError(f"--attention {options.attention}: the decoder of {options.run} does not attend; attention and adaptive do")
    out = options.attention
    if out and (out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") or not out.absolute().parent.is_dir()):
        raise UserError(f"--attention {out}: must be a .png, .jpg or .webp file in a folder that exists")
    search = Beam(options.beam_size, options.beam_size if options.n_best else 1, options.max_length)
    result, strips, refused = {}, [], []
    for path in options.images:
        try:
            image = run.transform.read(path)
        except UserError as error:  # the others are still captioned
            refused.append(str(error))
            continue
        pixels = run.transform(image)[None].to(device)
        found = run.model.generate(pixels, search)
        captions = [run.vocabulary.decode(ids) for ids in found.tokens[0].tolist()]
        result[str(path)] = [{"caption": text, "log_p": score} for text, score in zip(captions, found.scores[0].tolist())]
        if options.attention:
            with torch.inference_mode():
                attention = attention_over(run.model, pixels, found.tokens[:, 0])
            strips.append(strip(run.transform.picture(image), captions[0], None if attention is None else attention[0]))
        if not options.json:
            shown = result[str(path)] if options.n_best else result[str(path)][:1]
            for item in shown:
                print(f"{path}: {item['caption']}" + (f"  ({item['log_p']:.2f})" if options.n_best else ""))
    if options.json:
        print(json.dumps(result if options.n_best else {path: items[0]["caption"] for path, items in result.items()}, indent=1))
    if strips:
        stacked(strips).save(options.attention)
        print(f"{options.attention} shows where each word looked", file=sys.stderr)
    if refused:
        raise UserError("; ".join(refused))


def run_check(options: argparse.Namespace) -> None:
    from captioning.build.compose import as_dict, composed
    from captioning.build.objects import make_data
    from captioning.build.schema import check
    from captioning.data.check import check_splits, summary
    from captioning.training.console import progress

    config = as_dict(composed("train", options.overrides))
    check(config)
    data = make_data(config)
    if not Path(data.root).is_dir() and "shapes" not in config["data"]["reader"]["_target_"]:
        raise UserError(f"data.root={data.root}: no such folder")
    try:
        splits = data.reader()
    except UserError as error:
        print(f"not readable: {error}")
        sys.exit(1)
    print("\n".join(summary(splits, data.min_count)))
    with progress("reading images", sum(map(len, splits.values()))) as advance:
        problems = check_splits(splits, advance)
    for kind in dict.fromkeys(problem.kind for problem in problems):
        its = [problem for problem in problems if problem.kind == kind]
        print(f"\n{kind}: {len(its)}{'' if its[0].is_fatal else ' (training works)'}")
        for problem in its[: options.most]:
            print(f"  {problem.where}: {problem.what}")
        if len(its) > options.most:
            print(f"  ... and {len(its) - options.most} more")
    fatal = sum(problem.is_fatal for problem in problems)
    print(f"\n{len(problems)} problems, {fatal} of which would make training wrong" if problems else "\nno problems")
    sys.exit(1 if fatal else 0)


def run_extract(options: argparse.Namespace) -> None:
    from captioning.build.compose import as_dict, composed
    from captioning.build.schema import check

    config = as_dict(composed("train", options.overrides))
    check(config, needed=("data", "encoder", "cache", "seed", "device"))
    from captioning.build.features import extract_all

    extract_all(config)


def run_report(options: argparse.Namespace) -> None:
    if options.examples < 1:
        raise UserError(f"--examples {options.examples}: at least 1")
    from captioning.build.report import write_report

    settings = {"data_root": options.data_root, "device": options.device, "examples": options.examples}
    print(write_report(options.run, options.other, out=options.out, **settings))


def run_cache(options: argparse.Namespace) -> None:
    from captioning.cache.store import entries, in_words, remove

    if options.action == "remove":
        if options.all == bool(options.keys):
            raise UserError("captioning cache remove: give KEYs of `captioning cache list`, or --all")
        keys = [entry.key for entry in entries(options.dir)] if options.all else options.keys
        print(f"{in_words(remove(options.dir, keys))} set free")
        return
    found = entries(options.dir)
    for entry in found:
        print(f"{entry.key}  {in_words(entry.bytes):>9}  {entry.state:10}  {entry.images:,} images  {entry.what}")
    print(f"{len(found)} in {options.dir}, {in_words(sum(entry.bytes for entry in found))}")


def run_compare(options: argparse.Namespace) -> None:
    from captioning.analysis import tables
    from captioning.analysis.compare import compare
    from captioning.analysis.grouping import grouped

    for file in options.out:
        tables.check_out(file)
    if options.resamples < 100:
        raise UserError(f"--resamples {options.resamples}: at least 100")
    from captioning.analysis.comparison_page import page
    from captioning.analysis.page import write
    from captioning.build.compare import costs_of, read_members, unfinished
    from captioning.training.distributed import find_device

    device = find_device(options.device)
    by, metrics = (list(dict.fromkeys(filter(None, text.split(",")))) for text in (options.by, options.metric))
    groups = grouped(read_members(options.runs), by)
    comparison = compare(groups, metrics, baseline=options.baseline, resamples=options.resamples, force=options.force)
    comparison = comparison._replace(warnings=comparison.warnings + unfinished(comparison))
    costs = tables.Costs(*costs_of(groups, device, not options.no_timing))
    tables.show(tables.tables(comparison, costs))
    for warning in comparison.warnings:
        print(f"note: {warning}")
    for file in options.out:
        render = tables.RENDERINGS.get(file.suffix.lower(), page)
        write(file, render(comparison, costs))
        print(f"written: {file}")


def run_doctor(options: argparse.Namespace) -> None:
    from captioning.doctor import report

    print("\n".join(report()))


if __name__ == "__main__":
    main()
