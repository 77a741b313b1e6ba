"""CIDEr as COCO computes it, which is the paper's CIDEr-D: tf-idf weighted n-gram cosine, clipped, with a length penalty, times 10.

Vedantam et al. 2015, sections 3 and 4. Without the stemming of the paper, as in COCO's code.
"""

import gzip
import hashlib
import json
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from captioning.metrics.ngrams import LONGEST, Captions, Compared, Lexicon, Words, halves, pair

SIGMA = 6.0
FEW = 100  # of fewer images document frequencies say little: of a single one CIDEr is 0


def few_images(images: int) -> str:
    return f"CIDEr's document frequencies are of {images} images: from fewer than {FEW} it means little; captioning score has --cider-df"


class Frequencies(NamedTuple):
    """In how many images' references each n-gram is. Kept, so that small sets of images are weighted as a large one is."""

    images: int
    counts: dict[str, int]  # n-gram, its words joined by spaces -> images

    @classmethod
    def of(cls, references: Sequence[Sequence[Words]]) -> "Frequencies":
        """references: of every image its references in words."""
        grams = lambda words: {" ".join(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1)}  # noqa: E731
        counts = Counter(gram for its in references for gram in set().union(*map(grams, its)))
        return cls(len(references), dict(sorted(counts.items())))

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.images, sorted(self.counts.items())]).encode()).hexdigest()[:8]

    def save(self, path: Path) -> None:
        """JSON; compressed if the name ends with .gz."""
        text = json.dumps({"images": self.images, "counts": self.counts}, ensure_ascii=False).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)

    @classmethod
    def load(cls, path: Path) -> "Frequencies":
        """OSError or ValueError for a file that is not one."""
        content = path.read_bytes()
        try:
            its = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
        except (EOFError, zlib.error) as error:
            raise ValueError(f"not whole: {error}") from None
        images, counts = (its.get("images"), its.get("counts")) if isinstance(its, dict) else (None, None)
        if not (isinstance(images, int) and images > 0 and isinstance(counts, dict)):
            raise ValueError('expected {"images": N, "counts": {"a dog": 12, ...}}')
        if wrong := next((gram for gram, count in counts.items() if not (isinstance(count, int) and 0 < count <= images)), None):
            raise ValueError(f"{wrong!r} is said to be in {counts[wrong]} of {images} images")
        return cls(images, counts)


class Cider:
    """frequencies: None takes those of the references themselves."""

    def __init__(self, references: Captions, lexicon: Lexicon, frequencies: Frequencies | None = None):
        self.references, self.many = references, np.bincount(references.image)  # references of each image
        self.unseen = math.log(max(1, frequencies.images if frequencies else len(self.many)))  # weight of an n-gram that no reference has
        self.weights = self.given(lexicon, frequencies) if frequencies else self.own()
        self.norms = [self.norm(references, n) for n in range(LONGEST)]

    def own(self) -> list[np.ndarray]:
        """The weight of each n-gram of the references by its number; the weight of all others stands last."""
        weights = []
        for its in self.references.grams:
            _, gram = halves(np.unique(pair(self.references.image[its.caption], its.gram)))
            weights.append(np.append(self.unseen - np.log(np.maximum(1, np.bincount(gram))), self.unseen))
        return weights

    def given(self, lexicon: Lexicon, frequencies: Frequencies) -> list[np.ndarray]:
        weights = []
        for n in range(LONGEST):
            words = {gram: gram.split(" ") for gram in frequencies.counts}
            grams = [(its, frequencies.counts[gram]) for gram, its in words.items() if len(its) == n + 1]
            numbers = lexicon.count([its for its, _ in grams])[n].gram
            weight = np.full(numbers.max(initial=-1) + 2, self.unseen)
            weight[numbers] -= np.log(np.maximum(1, [count for _, count in grams]))
            weights.append(weight)
        return weights

    def weight(self, gram: np.ndarray, n: int) -> np.ndarray:
        return self.weights[n][np.minimum(gram, len(self.weights[n]) - 1)]

    def norm(self, captions: Captions, n: int) -> np.ndarray:
        """(C,) norms of tf-idf vectors; 1 where there is nothing to divide."""
        its = captions.grams[n]
        norm = np.sqrt(np.bincount(its.caption, (its.count * self.weight(its.gram, n)) ** 2, len(captions.words)))
        return np.where(norm > 0, norm, 1.0)

    def each(self, compared: Compared) -> np.ndarray:
        """(C,) in 0..10: a mean over the image's references and over lengths of n-grams."""
        return self.cosines(compared, clipped=True, sigma=SIGMA)

    def cosines(self, compared: Compared, *, clipped: bool, sigma: float) -> np.ndarray:
        """clipped: an n-gram counts no more often than the reference has it. sigma: of the penalty for another length, in words."""
        captions, shared = compared
        total = np.zeros(len(captions.words))
        for n, (own, other, both) in enumerate(zip(captions.grams, self.references.grams, shared)):
            caption, reference = own.caption[both.own], other.caption[both.other]
            count, times = own.count[both.own], other.count[both.other]
            dot = (np.minimum(count, times) if clipped else count) * times * self.weight(own.gram[both.own], n) ** 2
            cosine = dot / (self.norm(captions, n)[caption] * self.norms[n][reference])
            gap = captions.lengths[caption] - self.references.lengths[reference]
            total += np.bincount(caption, cosine * np.exp(-(gap**2) / (2 * sigma**2)), len(total))
        return 10 * total / LONGEST / self.many[captions.image]
