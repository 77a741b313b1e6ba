"""Words to ids and back. One tokenizer for training text; the metrics have their own and see strings only."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from captioning.errors import UserError

WORD = re.compile(r"[^\W_]+(?:['’.\-&/][^\W_]+)*")


def words(caption: str) -> list[str]:
    """Lower-case words of a caption. Punctuation is dropped except inside a word: `dog's`, `t-shirt`, `at&t`, `3.5`."""
    return WORD.findall(caption.lower().replace("’", "'"))


class Vocabulary:
    """Ids 0-3 are <pad>, <bos>, <eos> and <unk>; then the words, most frequent first."""

    pad, bos, eos, unk = 0, 1, 2, 3
    SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")

    def __init__(self, known: Iterable[str]):
        self.words = [*self.SPECIAL, *known]
        self.ids = {word: index for index, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def build(cls, captions: Iterable[str], min_count: int = 1) -> "Vocabulary":
        """Of the training split only. Equal counts are ordered by spelling, so that a rebuilt vocabulary is the same."""
        counts = Counter(word for caption in captions for word in words(caption))
        frequent = [word for word, count in counts.items() if count >= min_count]
        if not frequent:
            raise UserError(f"data.min_count={min_count}: no word of the training captions occurs so often")
        return cls(sorted(frequent, key=lambda word: (-counts[word], word)))

    def encode(self, caption: str, max_length: int) -> list[int]:
        """<bos> words <eos>, with at most `max_length` words."""
        inner = [self.ids.get(word, self.unk) for word in words(caption)[:max_length]]
        return [self.bos, *inner, self.eos]

    def decode(self, ids: Iterable[int]) -> str:
        """The words up to <eos>, joined by spaces. <unk> is shown as itself: a hypothesis must not hide it."""
        inner = []
        for index in ids:
            if index == self.eos:
                break
            if index not in (self.pad, self.bos):
                inner.append(self.words[index])
        return " ".join(inner)

    def unknown_rate(self, captions: Iterable[str]) -> float:
        """The share of words in these captions which are not in the vocabulary."""
        known = Counter(word in self.ids for caption in captions for word in words(caption))
        return known[False] / max(1, known.total())

    @property
    def digest(self) -> str:
        """Equal for equal words in equal order."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.words[len(self.SPECIAL) :], ensure_ascii=False, indent=0) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(known, list) and all(isinstance(word, str) for word in known):
                return cls(known)
            raise UserError(f"{path}: not a vocabulary (a JSON list of words)")
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            raise UserError(f"{path}: not a vocabulary (a JSON list of words): {error}") from None
