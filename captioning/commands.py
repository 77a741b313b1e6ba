"""What the commands of `captioning` do: each opens what it needs and hands it on. What is heavy is imported where it is used."""

import argparse
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

from captioning.errors import UserError

MAX_DRAWN = 50  # pictures with their attention, one below the other


def run_caption(options: argparse.Namespace) -> None:
    for name in ("beam_size", "max_length", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: at least 1")
    keeps, kinds = options.out or options.alt_csv or options.embed, list(dict.fromkeys(filter(None, options.embed.split(","))))
    if keeps and (options.json or options.attention):
        raise UserError(f"{'--json' if options.json else '--attention'} shows captions; --out, --alt-csv and --embed keep them: not both")
    if bool(kinds) != bool(options.into):
        raise UserError("--embed KIND,KIND --into DIR: one without the other; the copies need a folder of their own")
    from captioning.serving.alt_text import KINDS, AltTexts, Copies

    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--embed {options.embed}: no {unknown[0]!r}. Allowed: {', '.join(KINDS)}")
    for place in (options.into, *options.into.parents) if options.into else ():
        if os.path.exists(place) and not os.path.isdir(place):
            raise UserError(f"--into {options.into}: {'' if place == options.into else f'{place} '}is a file; a folder is needed")
    if options.alt_csv and not os.path.isdir(options.alt_csv) and options.alt_csv.suffix.lower() != ".csv":
        raise UserError(f"--alt-csv {options.alt_csv}: must end in .csv")
    from captioning.build.files import keep, show
    from captioning.build.serving import open_captioner
    from captioning.serving.caption_file import CaptionFile
    from captioning.serving.captioner import Asked
    from captioning.serving.files import find, refuse_overwriting, writable

    captioner, about = open_captioner(options.run, options.device)
    out = options.attention
    if out and not captioner.attends:
        raise UserError(f"--attention {out}: the decoder of {options.run} does not attend; attention and adaptive do")
    if out and (out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp") or not out.absolute().parent.is_dir()):
        raise UserError(f"--attention {out}: must be a .png, .jpg or .webp file in a folder that exists")
    files = find(options.images, without=options.into)
    if not files.paths:
        raise UserError(writable("; ".join(files.problems)))
    refuse_overwriting({"--out": options.out, "--alt-csv": options.alt_csv, "--attention": out}, files.paths.values())
    if out and len(files.paths) > MAX_DRAWN:
        raise UserError(f"--attention {out}: draws {MAX_DRAWN} pictures at most, these are {len(files.paths):,}")
    asked = Asked(options.beam_size, options.max_length, options.beam_size if options.n_best else 1, looks=bool(out))
    if not keeps:
        return show(captioner, files, asked, options.batch_size, as_json=options.json, attention=out)
    made_by = {
        "checkpoint": about["checkpoint"],
        "beam_size": options.beam_size,
        "max_length": options.max_length,
        "n_best": options.n_best,
        "folder": os.path.relpath(files.folder, (options.out or Path()).absolute().parent),  # both may move together
    }
    keep(
        captioner,
        files,
        asked,
        options.batch_size,
        file=CaptionFile(options.out, made_by) if options.out else None,
        alt_texts=AltTexts(options.alt_csv) if options.alt_csv else None,
        copies=Copies(options.into, kinds, options.overwrite) if kinds else None,
    )


def run_demo(options: argparse.Namespace) -> None:
    if not 1 <= options.port <= 65535:
        raise UserError(f"--port {options.port}: must be from 1 to 65535")
    need("gradio", "demo")
    from captioning.build.demo import show

    show(options.run, options.examples, host=options.host, port=options.port, device=options.device)


def run_publish(options: argparse.Namespace) -> None:
    need("gradio", "demo")
    from captioning.build.publish import publish

    for line in publish(
        options.run, options.folder, kind=options.kind, name=options.name, license=options.license, overwrite=options.overwrite
    ):
        print(line)


def need(module: str, extra: str) -> None:
    """A package that comes with an extra."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{module} is not installed: pip install 'captioning[{extra}]'")


def run_serve(options: argparse.Namespace) -> None:
    if options.allow_host and not options.allow_urls:
        raise UserError(f"--allow-host {options.allow_host[0]}: needs --allow-urls")
    for origin in options.cors_origin:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UserError(f"--cors-origin {origin}: must be scheme and host, as in https://example.org, or *")
    try:
        from captioning.build.serving import limits_of, open_captioner, read_key
        from captioning.serving.server import listen, prepared, serve
        from captioning.serving.service import Service
    except ModuleNotFoundError as error:
        raise UserError(f'captioning serve: {error.name} is missing: pip install "captioning[serve]"') from None
    limits, key = limits_of(options), read_key(options.api_key_file)
    listener = listen(options.host, options.port)
    captioner, model = open_captioner(options.run, options.device)
    download = None
    if options.allow_urls:
        from captioning.serving.fetch import Fetcher

        download = Fetcher(tuple(options.allow_host))
    server = prepared(Service(captioner, limits, download), model, api_key=key, origins=options.cors_origin)
    serve(server, listener, model["name"])


def run_check_data(options: argparse.Namespace) -> None:
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


def run_gallery(options: argparse.Namespace) -> None:
    if options.images < 1:
        raise UserError(f"--images {options.images}: at least 1")
    from captioning.build.gallery import write_gallery

    print(write_gallery(options.runs, out=options.out, data_root=options.data_root, images=options.images))


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


def run_score(options: argparse.Namespace) -> None:
    from rich.console import Console

    from captioning.analysis import scoring
    from captioning.data.captions import read_captions
    from captioning.metrics.audit import audit
    from captioning.metrics.cider import Frequencies
    from captioning.metrics.score import respaced
    from captioning.metrics.tokenizer import tokenize

    given, notes = scoring.read(options.captions, options.references)
    frequencies = None if options.cider_df == "corpus" else scoring.read_frequencies(Path(options.cider_df))
    scored = scoring.score(given, frequencies, read_captions(options.training) if options.training else None, options.java)
    try:
        if options.save_cider_df:
            Frequencies.of([[respaced(tokenize(text)) for text in its] for its in given.references]).save(options.save_cider_df)
        if options.per_image:
            scored.result.save(options.per_image)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from None
    for note in notes + scored.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.json:
        print(json.dumps(scored.metrics, indent=1))
        return
    signatures = scored.metrics["signatures"]
    for name, value in scored.metrics.items():
        if name != "signatures":
            print(f"{name:18} {value:<8.4f} {signatures.get(name, '')}" if isinstance(value, float) else f"{name:18} {value}")
    if options.audit:
        Console().print(scoring.audit_table(audit([texts[0] for texts in given.candidates], given.references)))


def run_tokenize(options: argparse.Namespace) -> None:
    from captioning.metrics.tokenizer import tokenize

    try:
        content = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
        text = content.decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{options.file}: line {line} is not UTF-8, which captions must be in") from error
    except OSError as error:
        reason = {FileNotFoundError: "no such file", IsADirectoryError: "a folder, not a file"}.get(type(error), error.strerror)
        raise UserError(f"{options.file}: {reason}") from error
    captions = text.removesuffix("\n").split("\n") if text else []
    sys.stdout.buffer.write("".join(" ".join(tokenize(caption)) + "\n" for caption in captions).encode())


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
    comparison = compare(groups, metrics, by=by, baseline=options.baseline, resamples=options.resamples, force=options.force)
    comparison = comparison._replace(warnings=comparison.warnings + unfinished(comparison))
    costs = tables.Costs(*costs_of(groups, device, not options.no_timing))
    tables.show(tables.tables(comparison, costs))
    for warning in comparison.warnings:
        print(f"note: {warning}")
    for file in options.out:
        render = tables.RENDERINGS.get(file.suffix.lower(), page)
        write(file, render(comparison, costs))
        print(f"written: {file}")


def run_export(options: argparse.Namespace) -> None:
    from captioning.build.export import export

    for line in export(options.run, options.out, kind=options.format, int8=options.int8):
        print(line)


def run_doctor(options: argparse.Namespace) -> None:
    from captioning.doctor import report

    print("\n".join(report()))
