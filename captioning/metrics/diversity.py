"""What captions look like, without a judgement: their lengths, words, repetitions; how new they are, and how different from each other."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from captioning.metrics.bleu import bleu
from captioning.metrics.ngrams import LONGEST, pair
from captioning.metrics.score import References
from captioning.metrics.tokenizer import tokenize

UNKNOWN = "<unk>"


def describe(captions: Sequence[str]) -> dict[str, float]:
    """length: words of a caption, mean. vocabulary_used: words used at all. distinct1, distinct2: the share of words, of bigrams, that
    are not another's repetition (Li et al. 2016, section 5). distinct_captions; most_common_share: the largest share of images with one
    caption. repeats: the share of captions with a bigram twice or a word twice in a row. unknown_rate: the share of <unk> among words.
    """
    words = [tokenize(caption) for caption in captions]
    bigrams = [list(pairwise(its)) for its in words]
    said, pairs = sum(map(len, words)), sum(map(len, bigrams))
    repeating = [len(set(its)) < len(its) or any(one == other for one, other in its) for its in bigrams]
    same = Counter(captions).most_common(1)[0][1] if captions else 0
    return {
        "length": said / max(1, len(captions)),
        "vocabulary_used": len(set().union(*words)),
        "distinct1": len(set().union(*words)) / max(1, said),
        "distinct2": len(set().union(*bigrams)) / max(1, pairs),
        "distinct_captions": len(set(captions)),
        "most_common_share": same / max(1, len(captions)),
        "repeats": sum(repeating) / max(1, len(captions)),
        "unknown_rate": sum(caption.split().count(UNKNOWN) for caption in captions) / max(1, said),
    }


def novelty(captions: Sequence[str], training: Iterable[str]) -> float:
    """The share of captions which are not, word for word, a training caption."""
    known = {tuple(tokenize(caption)) for caption in training}
    return sum(tuple(tokenize(caption)) not in known for caption in captions) / max(1, len(captions))


def diversity(candidates: Sequence[Sequence[str]], references: References) -> dict[str, float]:
    """How different the candidates of one image are, over images that have several.

    mbleu4: BLEU-4 of a candidate against the image's others (Zhu et al. 2018, self-BLEU); the lower, the more diverse.
    self_cider: 0 for candidates that are all alike, 1 for those that share nothing (Wang and Chan 2019, section 3).
    candidates: in the order of the references, whose document frequencies are used.
    """
    several = [image for image, texts in enumerate(candidates) if len(texts) > 1]
    if not several:
        return {}
    apart = self_cider(candidates, references)[several]
    apart = apart[~np.isnan(apart)]
    return {"mbleu4": mbleu4([candidates[image] for image in several])} | ({"self_cider": float(apart.mean())} if len(apart) else {})


def mbleu4(candidates: Sequence[Sequence[str]]) -> float:
    scores = []
    for place in range(max(map(len, candidates))):
        its = [texts for texts in candidates if len(texts) > place]
        others = References([[*texts[:place], *texts[place + 1 :]] for texts in its])
        statistics = others.bleu.each(others.compare([texts[place] for texts in its], range(len(its))))
        scores.append(float(bleu(statistics.sums(np.ones((1, len(its)), dtype=np.int64)))["bleu4"][0]))
    return sum(scores) / len(scores)


def self_cider(candidates: Sequence[Sequence[str]], references: References) -> np.ndarray:
    """(images,): from the eigenvalues of the matrix of CIDEr cosines, -log(largest root / sum of roots) / log(candidates).
    NaN for an image whose candidates have no n-gram with a weight, or that has one candidate."""
    counts = np.array([len(texts) for texts in candidates])
    K = counts.max(initial=0)
    image = np.repeat(np.arange(len(candidates)), counts)
    slot = np.arange(len(image)) - np.repeat(np.cumsum(counts) - counts, counts)
    captions = references.read([tokenize(text) for texts in candidates for text in texts], image)
    kernel = np.zeros((len(candidates), K, K))
    for n, its in enumerate(captions.grams):
        value = its.count * references.cider.weight(its.gram, n) / references.cider.norm(captions, n)[its.caption]
        order = np.argsort(pair(image[its.caption], its.gram), kind="stable")
        keys, value, caption = pair(image[its.caption], its.gram)[order], value[order], its.caption[order]
        for apart in range(K):  # an n-gram of an image stands in at most K captions, now side by side
            both = np.flatnonzero(keys[: len(keys) - apart] == keys[apart:])
            one, other = caption[both], caption[both + apart]
            product = value[both] * value[both + apart] / LONGEST
            np.add.at(kernel, (image[one], slot[one], slot[other]), product)
            if apart:
                np.add.at(kernel, (image[one], slot[other], slot[one]), product)
    roots = np.sqrt(np.linalg.eigvalsh(kernel).clip(min=0))
    total = roots.sum(axis=1)
    defined = (counts > 1) & (total > 0)
    share = roots.max(axis=1, initial=0) / np.where(defined, total, 1.0)
    return np.where(defined, -np.log(np.where(defined, share, 1.0)) / np.log(np.maximum(counts, 2)), np.nan).clip(0, 1)
