"""From captions to BLEU, ROUGE-L and CIDEr: 1,000 images with five references, as text."""

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from random import Random

from benchmarks.baselines import bleu_a_batch
from benchmarks.material import flickr8k_root
from benchmarks.measure import Goal, Row, Run, interleaved, row
from captioning.metrics.score import References, score
from captioning.metrics.tokenizer import tokenize

WORDS = ("a", "the", "dog", "man", "in", "on", "red", "blue", "with", "jumping", "water", "grass", "ball", "two", "and", "is")


def material(images: int) -> tuple[list[str], list[list[str]]]:
    """Flickr8k's references with another caption of the image, changed a little, as hypothesis; without Flickr8k, drawn words."""
    random, root = Random(0), flickr8k_root()
    found: dict[str, list[str]] = {}
    if root:
        for line in (root / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
            name, _, caption = line.partition("\t")
            found.setdefault(name.partition("#")[0], []).append(caption)
        references = [its for its in found.values() if len(its) == 5][:images]
    else:
        references = [[" ".join(random.choices(WORDS, k=11)) + " ." for _ in range(5)] for _ in range(images)]
    hypotheses = [" ".join(word for word in tokenize(its[0]) if random.random() < 0.8) or "a dog" for its in references]
    return hypotheses, references


def coco_score(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    """pycocoevalcap's tokenizer (Java) and its three scorers, one by one."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    with contextlib.redirect_stdout(io.StringIO()), silent():
        wanted = PTBTokenizer().tokenize({i: [{"caption": text} for text in its] for i, its in enumerate(references)})
        guessed = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(hypotheses)})
        bleu = Bleu(4).compute_score(wanted, guessed)[0]
        values = {"rouge_l": Rouge().compute_score(wanted, guessed)[0], "cider": Cider().compute_score(wanted, guessed)[0]}
    return {f"bleu{n + 1}": float(value) for n, value in enumerate(bleu)} | {name: float(value) for name, value in values.items()}


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Java writes to the descriptor itself."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def scoring(run: Run) -> Iterator[Row]:
    hypotheses, references = material(200 if run.quick else 1000)
    what = f"from text, {len(hypotheses)} x 5"
    ours, prepared = score(hypotheses, references), References(references)
    goals = {"cold": Goal(4), "references prepared": Goal(20)}
    if shutil.which("java"):
        theirs = coco_score(hypotheses, references)
        apart = max(abs(ours[name] - theirs[name]) for name in theirs)
        ways = {"cold": lambda: score(hypotheses, references), "references prepared": lambda: prepared.score(hypotheses)}
        times = interleaved(run, {"theirs": lambda: coco_score(hypotheses, references), **ways})
        note = f"scores differ by at most {apart:.0e}"
        for name, goal in goals.items():
            if apart < 1e-3:  # the tokenizers part over a caption in ten thousand
                yield row(f"BLEU, ROUGE-L, CIDEr {what}, {name}", "pycocoevalcap", times["theirs"], times[name], goal=goal, note=note)
            else:
                yield Row(f"BLEU, ROUGE-L, CIDEr {what}, {name}", "pycocoevalcap", goal=goal, note=f"no ratio: {note}")
    else:
        yield Row(f"BLEU, ROUGE-L, CIDEr {what}", "pycocoevalcap", note="it needs Java for its tokenizer, and there is none")
    times = interleaved(run, {"theirs": lambda: bleu_a_batch(hypotheses, references), "ours": lambda: score(hypotheses, references)})
    yield row(f"BLEU, ROUGE-L, CIDEr {what}, cold", "BLEU alone, batch by batch, a visit a caption", times["theirs"], times["ours"])
