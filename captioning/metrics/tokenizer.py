"""The Penn Treebank tokenizer as COCO's metrics use it: lower-cased, without punctuation. In Python; no Java."""

import re

VERSION = "ptb-py-1"  # in a metric's signature
DROPPED = frozenset(["''", '"', "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
BRACKETS = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
}  # upper in the stop list: they survive
ABBREVIATIONS = (
    "mr mrs ms dr st jr sr prof gen col lt sgt rev vs etc inc co corp ltd ave blvd rd no jan feb mar apr jun jul aug sep sept oct nov dec"
)
TOKEN = re.compile(
    r"""
    \s*+(
    (?:(?!cannot|gonna|wanna|gotta)[a-z]++|\S)(?!\S)               # most words and stops: the lines below agree, but take longer
  | https?://\S+ | www\.\S+ | \S+@\S+\.\w+
  | (?:[a-z]\.){{2,}}                                             # u.s.
  | (?:{})\.(?=\s+\S)                                           # st. mary
  | (?:can)(?=not\b) | (?:gon)(?=na\b) | (?:wan)(?=na\b) | (?:got)(?=ta\b)
  | \$ | \#
  | [+-]?\d+(?:[.,:/]\d+)+ | [+-]\d+
  | [^\W_]+?(?=n't\b)                                           # do n't
  | n't\b
  | '(?:s|m|d|ll|re|ve)\b
  | [^\W_]+(?:(?:[-_]|(?<=\w)&(?=\w))[^\W_]+)*
  | \.\.\.+ | --+ | ``|''
  | \S )
    """.format("|".join(ABBREVIATIONS.split())),
    re.VERBOSE,
)


def tokenize(caption: str) -> list[str]:
    """Tokens of one caption."""
    text = caption.lower().replace("’", "'").replace("“", '"').replace("”", '"')
    found: list[str] = TOKEN.findall(text)
    return [BRACKETS.get(token, token) for token in found if token not in DROPPED]
