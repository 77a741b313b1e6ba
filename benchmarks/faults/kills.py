"""Runs that are killed at random moments and started again, until they end: as if nothing had been."""

import itertools
import random
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.faults.outcome import Outcome
from benchmarks.faults.training import CNN, MODEST, Program, differences

BEGINS = "batches an epoch"  # is printed just before the first step, or before a checkpoint is read
RESNET = ["encoder=resnet18", "encoder.weights=none"]
ENCODERS = {"fine-tuned": CNN, "frozen": [*RESNET, "features=off"], "cached": [*RESNET, "features=on"]}
DECODERS = {name: [f"decoder={name}"] for name in ("lstm", "gru", "rnn")} | {"attention": ["decoder=attention", "decoder.attention_size=8"]}
PRECISIONS = ("fp32", "bf16", "fp16")


class Combination(NamedTuple):
    decoder: str
    precision: str
    encoder: str
    workers: int

    def words(self, run: str, workers: int) -> list[str]:
        words = [word for word in MODEST if not word.startswith("data.workers")]
        words += [*ENCODERS[self.encoder], *DECODERS[self.decoder], f"trainer.precision={self.precision}"]
        return [*words, "data.root=drawn", f"data.workers={workers}", f"run={run}"]


def combinations() -> list[Combination]:
    """All 48, in an order of which any beginning is mixed. A frozen encoder's features are kept in half of them."""
    every = list(itertools.product(DECODERS, PRECISIONS, ("fine-tuned", "frozen"), (0, 2)))
    random.Random(4).shuffle(every)
    chosen = [Combination(*its) for its in every]
    return [its._replace(encoder="cached") if its.encoder == "frozen" and number % 2 else its for number, its in enumerate(chosen)]


def kills(folder: Path, kills: int = 50) -> Outcome:
    """Only what was alive counts as killed. The run goes on with a number of workers drawn anew."""
    draws, passed, in_save, at_start, wrong = random.Random(0), 0, 0, 0, []
    chosen = combinations()[: max(1, min(48, kills // 2 if kills < 48 else kills))]
    for number, combination in enumerate(chosen):
        left = kills // len(chosen) + (number < kills % len(chosen))
        truth = folder / f"{number}-truth"
        program = Program(folder, combination.words(truth.name, combination.workers))
        program.wait_for(BEGINS)
        began = time.monotonic()
        ended = program.end()
        duration = time.monotonic() - began
        if ended.code:
            raise AssertionError(f"{combination}: {ended.text}")
        for attempt in itertools.count():
            if not left:
                break
            run, hit = folder / f"{number}-{attempt}", 0
            words = combination.words(run.name, combination.workers)
            while left:
                program = Program(folder, words)
                program.wait_for(BEGINS)
                time.sleep(draws.uniform(0, duration))
                if not program.kill():
                    break  # it was over before
                left, hit = left - 1, hit + 1
                in_save += (run / "last.new").exists() or (run / "best.new").exists()
                at_start += not (run / "last").exists()
                words = combination.words(run.name, draws.choice((0, 2)))
            last = Program(folder, words).end()
            different = [last.text] if last.code else differences(truth, run)
            passed += 0 if different else hit
            wrong += [f"{combination}: {', '.join(different)}"] if different else []
    note = f"{len(chosen)} combinations; {at_start} before the first checkpoint, {in_save} inside a save"
    return Outcome("SIGKILL at a random moment", kills, passed, "; ".join([note, *wrong]))
