"""The tokenizer against the Java one that COCO's metrics call: `tokens.jsonl` is what that one made of each caption."""

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, flickr8k_root

from captioning.metrics.score import score
from captioning.metrics.tokenizer import DROPPED, SEPARATORS, tokenize

FROZEN = [json.loads(line) for line in (ROOT / "tests" / "tokens.jsonl").read_text("ascii").splitlines()]
JAVAS = {  # SHA-256 of the Java tokens of all of Flickr8k's captions
    "as shipped": "97a192e0a93bdb69ceda6188e83ebadc1aba187b6cde43366251bffb8e367482",
    "written as COCO's": "0a242051bb6390ce3fac5f05801e5bcaefc2fd39efe652746b324a8d6bf4837e",
}


def java(captions, folder: Path) -> list[list[str]]:
    """What the Java tokenizer makes of captions, read as pycocoevalcap reads it, but with a line between any two.

    Without that line the last word of a caption may depend on the next caption: "vitamin C." before "The dog" loses its full stop.
    """
    if shutil.which("java") is None:
        pytest.skip("no Java here: tests/tokens.jsonl stands for it")
    tokenizer = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    (folder / "captions.txt").write_text("".join(f"{caption.translate(SEPARATORS)}\n.\n" for caption in captions), "utf-8", newline="\n")
    jar = Path(tokenizer.__file__).parent / tokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase", folder / "captions.txt"]
    lines = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\n")
    assert lines[1::2] == ["."] * len(captions)
    return [[word for word in line.rstrip().split(" ") if word and word not in tokenizer.PUNCTUATIONS] for line in lines[:-1:2]]


def differing(captions, wanted):
    return [(caption, tokens, tokenize(caption)) for caption, tokens in zip(captions, wanted, strict=True) if tokenize(caption) != tokens]


def recombined(lines: int) -> list[str]:
    """Captions of fragments of the frozen ones, joined with and without spaces. None with "=": there Java may look into later lines."""
    draws = random.Random(0)
    fragments = sorted({word for its in FROZEN for word in its["caption"].translate(SEPARATORS).split(" ") if "=" not in word})
    return ["".join(draws.choice(fragments) + draws.choice([" ", " ", ""]) for _ in range(draws.randint(1, 8))) for _ in range(lines)]


def test_tokens_are_those_of_the_java_tokenizer():
    """Where these must change, VERSION must, too."""
    assert not differing([its["caption"] for its in FROZEN], [its["tokens"] for its in FROZEN])


def test_the_frozen_tokens_and_those_of_random_captions_come_from_java(tmp_path):
    captions = [its["caption"] for its in FROZEN]
    found = java(captions + recombined(4000), tmp_path)
    assert found[: len(captions)] == [its["tokens"] for its in FROZEN]
    assert not differing(recombined(4000), found[len(captions) :])


def flickr8k_captions(how: str) -> list[str]:
    text = (flickr8k_root() / "Flickr8k.token.txt").read_text("utf-8")
    captions = [line.split("\t", 1)[1] for line in text.split("\n") if line]
    return captions if how == "as shipped" else [written_as_cocos(caption) for caption in captions]


def written_as_cocos(caption: str) -> str:
    """`A dog 's ball , wet .` -> `A dog's ball, wet.`"""
    return re.sub(r" +(?=[,.;:!?)]|'s\b|n't\b)|(?<=[(]) +", "", caption.strip()[:1].upper() + caption.strip()[1:])


def digest(tokens: list[list[str]]) -> str:
    return hashlib.sha256("\n".join(map(" ".join, tokens)).encode()).hexdigest()


@pytest.mark.parametrize("how", JAVAS)
def test_all_captions_of_flickr8k_have_the_tokens_that_java_gives(how):
    assert digest([tokenize(caption) for caption in flickr8k_captions(how)]) == JAVAS[how]


def test_the_digests_of_flickr8k_come_from_java(tmp_path):
    captions = [caption for how in JAVAS for caption in flickr8k_captions(how)]
    found = java(captions, tmp_path)
    assert not differing(captions, found)
    half = len(captions) // 2
    assert {how: digest(tokens) for how, tokens in zip(JAVAS, (found[:half], found[half:]))} == JAVAS


@pytest.mark.parametrize("separator", ["\n", "\r", "\r\n", "\v", "\f", "\x85", "\u2028", "\u2029"])
def test_a_line_separator_in_a_caption_is_a_space_and_moves_no_other_caption(separator):
    assert tokenize(f"a dog{separator}runs") == ["a", "dog", "runs"]
    if separator != "\x85":  # to Java an ellipsis, in a code page of Windows: no token, but no space either
        assert tokenize(f"a C.{separator}The 3{separator[-1]}1/2") == tokenize("a C. The 3 1/2") == ["a", "c", "the", "3\u00a01/2"]
    hypotheses = ["a big dog runs home", "a cat sits on a mat", "two birds in the sky"]
    references = [[f"a big dog{separator}runs home"], ["a cat sits on a mat"], ["two birds in the sky"]]
    assert score(hypotheses, references)["bleu4"] == pytest.approx(1)


def test_a_caption_has_the_same_tokens_whatever_was_tokenized_before():
    captions = [its["caption"] for its in FROZEN]
    assert [tokenize(caption) for caption in captions[::-1]][::-1] == [tokenize(caption) for caption in captions]


def test_what_comes_out_has_no_punctuation_no_spaces_and_no_empty_word():
    for caption in recombined(2000):
        tokens = tokenize(caption)
        assert not DROPPED.intersection(tokens) and "" not in tokens and not any(" " in token for token in tokens)


def command(*arguments, given: bytes = b""):
    return subprocess.run([sys.executable, "-m", "captioning.cli", "tokenize", *arguments], cwd=ROOT, input=given, capture_output=True)


def test_the_command_prints_a_line_for_each_line(tmp_path):
    lines = ["A dog's ball.", "", "3 1/2 cups\rof tea", "Caf\u00e9\u2028x"]
    (tmp_path / "captions.txt").write_bytes("\n".join([*lines, ""]).encode())
    printed = command(str(tmp_path / "captions.txt"))
    assert printed.stdout.decode().split("\n") == ["a dog 's ball", "", "3\u00a01/2 cups of tea", "caf\u00e9 x", ""]
    assert command("-", given="\n".join(lines).encode()).stdout == printed.stdout


def test_the_command_refuses_what_it_cannot_read_with_one_sentence(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"a dog\ncaf\xe9\n")
    (tmp_path / "albums").mkdir()
    for name, reason in (("latin.txt", "line 2"), ("missing.txt", "no such file"), ("albums", "folder")):
        refused = command(str(tmp_path / name))
        assert refused.returncode == 2 and not refused.stdout
        assert refused.stderr.decode().startswith("error: ") and refused.stderr.count(b"\n") == 1
        assert reason in refused.stderr.decode() and name in refused.stderr.decode()
