"""Failures by category: rules over the words of a caption and of its references. They judge words, not pictures."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from captioning.analysis.texts import FUNCTION, listed, repeated, said
from captioning.metrics.diversity import UNKNOWN

NUMBERS = {word: str(value) for value, word in enumerate(listed("one two three four five six seven eight nine ten"), start=1)}
COLOURS = {word: word for word in listed("red orange yellow green blue purple pink brown black white gray silver gold")}
COLOURS |= {"grey": "gray", "golden": "gold", "violet": "purple"}
OPEN_ENDS = frozenset(listed("a an the in on at of to for from by with into onto over under through and or as is are while"))


class Seen(NamedTuple):
    """A caption and its references, in words."""

    caption: str
    words: list[str]
    references: list[list[str]]
    given: int  # to so many images


class Category(NamedTuple):
    name: str
    rule: str  # in the words of the reader
    find: Callable[[Seen], str | None]  # what is wrong, None: nothing


class Failure(NamedTuple):
    category: Category
    images: dict[str, str]  # image id -> what is wrong with its caption


def generic_from(images: int) -> int:
    """A caption given to so many images is generic: 1% of them, and five at least."""
    return max(5, -(-images // 100))


def failures(captions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> list[Failure]:
    """Every category with its images; an image may be in several."""
    given = Counter(captions.values())
    seen = {name: Seen(text, said(text), [said(its) for its in references[name]], given[text]) for name, text in captions.items()}
    return [
        Failure(category, {name: what for name, its in seen.items() if (what := category.find(its)) is not None})
        for category in categories(len(captions))
    ]


def categories(images: int) -> list[Category]:
    least = generic_from(images)
    return [
        Category("Nothing in common", "no word of the caption, function words aside, is in any reference", nothing_in_common),
        Category(
            "Another number",
            "the caption has a number (one to ten) that no reference has, and at least half of the references, two or more, agree on "
            "another; “a dog” is not counted as a number",
            lambda its: another(its, NUMBERS | {value: value for value in NUMBERS.values()}),
        ),
        Category(
            "Another colour",
            f"the caption has a colour ({', '.join(sorted(COLOURS))}) that no reference has, and at least half of the references, "
            "two or more, agree on a colour that the caption lacks; which thing has the colour is not looked at",
            lambda its: another(its, COLOURS),
        ),
        Category(
            "Repeated phrase",
            "words said twice in a row, three words in a row that come twice, or two words, none a function word, that come twice",
            lambda its: f"“{phrase}” again" if (phrase := repeated(its.words)) else None,
        ),
        Category("Unfinished", f"the last word is one of: {', '.join(sorted(OPEN_ENDS))}", unfinished),
        Category("Unknown word", f"the caption contains {UNKNOWN}", lambda its: f"has {UNKNOWN}" if UNKNOWN in its.caption else None),
        Category("Too short", "fewer words than half of the shortest reference, or none", too_short),
        Category("Too long", "more words than one and a half times the longest reference", too_long),
        Category(
            "Generic",
            f"the same caption is given to {least} or more images (1% of the images, at least five)",
            lambda its: f"given to {its.given} images" if its.given >= least else None,
        ),
    ]


def nothing_in_common(its: Seen) -> str | None:
    own = set(its.words) - FUNCTION
    shared = own & {word for reference in its.references for word in reference}
    return "no shared word" if not shared else None


def another(its: Seen, kinds: Mapping[str, str]) -> str | None:
    """kinds: the words that are looked for, and what each means. Names what is said, and what the references agree on."""
    ours = [kinds[word] for word in its.words if word in kinds]
    theirs = [{kinds[word] for word in reference if word in kinds} for reference in its.references]
    agreed = Counter(kind for kinds_of_one in theirs for kind in kinds_of_one)
    expected = [kind for kind, times in agreed.most_common() if times >= max(2, len(theirs) / 2) and kind not in ours]
    wrong = [kind for kind in ours if kind not in agreed]
    return f"says {wrong[0]}, references say {expected[0]}" if wrong and expected else None


def unfinished(its: Seen) -> str | None:
    return f"ends with “{its.words[-1]}”" if its.words and its.words[-1] in OPEN_ENDS else None


def too_short(its: Seen) -> str | None:
    shortest = min(map(len, its.references), default=0)
    return in_words(its, shortest) if len(its.words) < max(1, shortest / 2) else None


def too_long(its: Seen) -> str | None:
    longest = max(map(len, its.references), default=0)
    return in_words(its, longest) if len(its.words) > 1.5 * longest else None


def in_words(its: Seen, reference: int) -> str:
    return f"{len(its.words)} words, a reference has {reference}"
