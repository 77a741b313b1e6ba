"""Rows about load: how many pictures a second, and what becomes of more than that."""

import asyncio
import json
import time
from pathlib import Path

from benchmarks.faults.outcome import Outcome
from benchmarks.service.client import Server, ask, at_once, at_rate, serving, steadily, upload

CLIENTS = 32


def share(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


def rate(server: Server, contents: list[bytes], clients: int, seconds: float) -> float:
    began = time.monotonic()
    answers = asyncio.run(steadily(server.port, contents, clients, seconds))
    if bad := {its.status for its in answers} - {200}:
        raise RuntimeError(f"answers of an unloaded service: {bad}")
    return len(answers) / (time.monotonic() - began)  # the last are answered after the end


def throughput(run: Path, pictures: list[bytes], folder: Path, rounds: int = 5, seconds: float = 4) -> Outcome:
    """Pictures a second with batches against a service that describes one at a time, whose clients wait: A B A B, and the median."""
    contents = [upload(its) for its in pictures]
    with serving(run, folder) as ours, serving(run, folder, "--batch", "1") as single:
        pairs = [(rate(ours, contents, CLIENTS, seconds), rate(single, contents, CLIENTS, seconds)) for _ in range(rounds)]
    ratios = sorted(batched / one for batched, one in pairs)
    batched, one = (share([pair[index] for pair in pairs], 0.5) for index in (0, 1))
    middle = ratios[len(ratios) // 2]
    note = f"{middle:.1f} times (from {ratios[0]:.1f} to {ratios[-1]:.1f}): {batched:.0f} against {one:.0f} a second"
    return Outcome(f"throughput with batches, {CLIENTS} clients; must be 3 times one at a time", 1, int(middle >= 3), note)


def same_captions(run: Path, pictures: list[bytes], folder: Path, images: int = 200) -> Outcome:
    """Described alone and described with others."""
    contents = [upload(pictures[number % len(pictures)]) for number in range(images)]

    with serving(run, folder) as ours, serving(run, folder, "--batch", "1") as single:
        alone = [asyncio.run(ask(single.port, content)) for content in contents]
        others = [its for place in range(0, images, 64) for its in asyncio.run(at_once(ours.port, contents[place : place + 64]))]
        sizes = ours.get("/metrics").body.decode()
    batches = float(next(line.split()[1] for line in sizes.splitlines() if line.startswith("captioning_batch_pictures_count")))
    same = sum(one.status == other.status == 200 and json.loads(one.body) == json.loads(other.body) for one, other in zip(alone, others))
    return Outcome("described in batches as alone", len(contents), same, f"{len(others) / batches:.1f} pictures a batch on average")


def overload(run: Path, pictures: list[bytes], folder: Path, seconds: float = 60) -> Outcome:
    """Two hundred uploads at once, then four times the capacity for a minute."""
    contents = [upload(its) for its in pictures]
    with serving(run, folder) as server:
        capacity = max(rate(server, contents, 64, 4) for _ in range(2))
        burst = asyncio.run(at_once(server.port, [contents[number % len(contents)] for number in range(200)]))
        flood = asyncio.run(at_rate(server.port, contents, rate=4 * capacity, seconds=seconds))
        ready = server.get("/readyz").status == 200
    accepted = [its.seconds for its in flood if its.status == 200]
    refused = [its.seconds for its in flood if its.status in (429, 503)]
    goodput = len(accepted) / seconds / capacity
    checks = {
        "every one answered": all(its.status in (200, 429, 503) for its in burst + flood),
        "goodput": goodput >= 0.9,
        "refusals within 100 ms": share(refused, 0.99) <= 0.1,
        "p99 under the deadline": share(accepted, 0.99) < 10,
        "ready after it": ready,
    }
    of_accepted, of_refused = ([share(its, part) for part in (0.5, 0.99)] for its in (accepted, refused))
    note = f"{capacity:.0f} a second unloaded, {len(flood) / seconds:.0f} offered: goodput {goodput:.2f}; "
    note += f"accepted p50 {of_accepted[0]:.2f} s, p99 {of_accepted[1]:.2f} s; "
    note += f"refused p50 {1000 * of_refused[0]:.0f} ms, p99 {1000 * of_refused[1]:.0f} ms, most {1000 * share(refused, 1):.0f} ms; "
    note += f"of the 200 at once {sum(its.status == 200 for its in burst)} accepted"
    failed = [name for name, passed in checks.items() if not passed]
    note += f"; not: {', '.join(failed)}" if failed else ""
    return Outcome("200 uploads at once, then 4 times the capacity", len(checks), len(checks) - len(failed), note)
