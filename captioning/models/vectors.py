"""Word vectors from a text file (GloVe's format) as a start for a decoder's embeddings."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captioning.errors import UserError


def read_vectors(file: Path, words: Sequence[str], weight: Tensor) -> int:
    """Fill the rows of `weight` (V, E) whose words the file has, scaled to the spread of the others. Returns how many it had.

    A line is `word x1 ... xE`. Raises UserError where the file cannot be read, has another E, or none of the words.
    """
    rows = {word: row for row, word in enumerate(words)}
    found: dict[int, np.ndarray] = {}
    size = 0
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                fields = line.rstrip().split(" ")
                if number == 1 and len(fields) == 2:
                    continue  # word2vec's text format begins with two counts
                size = size or len(fields) - 1  # the first line decides: a few of GloVe's later words hold spaces
                if size != weight.shape[1] or len(fields) - 1 < size:
                    asked = f"decoder.embedding_size={weight.shape[1]} asks for {weight.shape[1]}"
                    raise UserError(f"vectors={file} line {number}: {len(fields) - 1} numbers; {asked}")
                word, values = " ".join(fields[:-size]), fields[-size:]
                if word in rows:
                    found[rows[word]] = np.array(values, dtype=np.float32)
    except OSError as error:
        raise UserError(f"vectors={file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"vectors={file}: not a text file of word vectors ({error})") from None
    if not found:
        raise UserError(f"vectors={file}: has none of the {len(words)} words of the vocabulary")
    given = torch.from_numpy(np.stack(list(found.values())))
    with torch.no_grad():
        weight[list(found)] = given * (weight.std() / given.std())
    return len(found)
