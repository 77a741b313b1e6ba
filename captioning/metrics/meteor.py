"""METEOR's formula over what its aligner found in each caption (Denkowski and Lavie 2014, section 2; parameters for English).

The aligner (stems, synonyms, paraphrases) is a Java program. The score is a function of sums over captions, as BLEU is, and the program's
own score of any set of captions is met to the last digits, so a bootstrap needs no Java.
"""

import numpy as np

WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])  # of exact, stem, synonym and paraphrase matches
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75

PARTS = ("meteor_said", "meteor_wanted", "meteor_length", "meteor_reference_length", "meteor_matched", "meteor_chunks")


def meteor_columns(answers: np.ndarray) -> dict[str, np.ndarray]:
    """answers (C, 23): the aligner's line for each caption. Content words weigh DELTA, function words the rest."""
    length, reference_length, function, reference_function = answers[:, :4].T
    stages = answers[:, 4:20].reshape(-1, 4, 4)  # (C, stages, content in caption and reference, function in caption and reference)
    weigh = lambda content, function: DELTA * content + (1 - DELTA) * function  # noqa: E731
    chunks, matched, reference_matched = answers[:, 20:].T
    whole = (chunks == 1) & (matched == length) & (reference_matched == reference_length)  # a perfect caption is not in pieces
    columns = (
        weigh(stages[:, :, 0], stages[:, :, 2]) @ WEIGHTS,
        weigh(stages[:, :, 1], stages[:, :, 3]) @ WEIGHTS,
        weigh(length - function, function),
        weigh(reference_length - reference_function, reference_function),
        (matched + reference_matched) / 2,
        np.where(whole, 0.0, chunks),
    )
    return dict(zip(PARTS, columns))


def meteor(sums: tuple[np.ndarray, ...]) -> np.ndarray:
    """The sums of PARTS over captions, each (R,) -> (R,) in 0..1."""
    said, wanted, length, reference_length, matched, chunks = sums
    precision, recall = said / np.maximum(length, 1e-12), wanted / np.maximum(reference_length, 1e-12)
    mean = precision * recall / np.maximum(ALPHA * precision + (1 - ALPHA) * recall, 1e-12)
    penalty = GAMMA * (chunks / np.maximum(matched, 1e-12)) ** BETA
    return np.where(matched > 0, mean * (1 - penalty), 0.0)
