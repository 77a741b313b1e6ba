"""The Penn Treebank tokenizer as COCO's metrics use it: lower-cased, without punctuation. In Python; no Java.

Equal, token for token, to what pycocoevalcap makes with Stanford CoreNLP 3.4.1 of a caption that no other follows.
"""

import re
from functools import lru_cache

from captioning.metrics.ptb_rules import ABBREVIATION, rules_at
from captioning.metrics.ptb_tables import Kinds

VERSION = "ptb-py-1"  # another one whenever a token changes: scores then are not comparable

# The stop list of pycocoevalcap. Its brackets are capital and tokens are not: brackets survive, as "-lrb-".
DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
SEPARATORS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))
KINDS = Kinds()

# A word with or without a mark behind it, as most are: here the rules need not be asked. Excluded: the words they split, and abbreviations.
SIMPLE = re.compile(rf"(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna)\b)(?:[A-Za-z]++[,;:?!]?|(?!{ABBREVIATION})[A-Za-z]++\.)")
# What makes a rule look over a space: a tag, digits or stops on both sides, a letter with a full stop, other white space.
FAR = re.compile(
    r"[<.)\d\t-\r\x1c-\x1f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
    r"(?: (?<=[\d).] )[\d.]| (?<=[A-Za-z]\. )(?<![A-Za-z]{2}\. )| (?<=[tT][eEyY]\. )|(?<![\d).]))"
)


def tokenize(caption: str) -> list[str]:
    """Tokens of one caption. Line separators in it are spaces. A token may hold a no-break space ("3 1/2" is one)."""
    if FAR.search(caption):
        line = " ".join(longest_matches(caption.translate(SEPARATORS))).rstrip()  # as a line of the Java program's output is read
        return [token for token in line.split(" ") if token and token not in DROPPED]
    return [token for chunk in caption.split(" ") for token in tokens_of(chunk)]


@lru_cache(maxsize=1 << 16)
def tokens_of(chunk: str) -> tuple[str, ...]:
    """Tokens of what stands between two spaces, where no rule looks further."""
    if SIMPLE.fullmatch(chunk):
        return (chunk.rstrip(",;:?!.").lower(),)
    return tuple(token for token in longest_matches(chunk) if token not in DROPPED)


def longest_matches(text: str) -> list[str]:
    """All tokens, punctuation among them. At each place the longest match wins, then the first rule."""
    kinds = text.translate(KINDS) + "\n\n"
    tokens, place = [], 0
    while place < len(text):
        longest, end, written = place, place + 1, None
        for pattern, how in rules_at(kinds[place]):
            if (match := pattern.match(kinds, place)) and match.end() > longest:
                longest, end, written = match.end(), match.end(1), how
        if written:
            tokens.append((written if isinstance(written, str) else written(text[place:end])).lower())
        place = end
    return tokens
