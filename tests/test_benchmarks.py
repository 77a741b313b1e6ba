"""Laws of the benchmarks: a ratio is between two ways of doing the same thing, and the floor counts what is really done."""

import math
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines import plain_of, search_each
from benchmarks.flops import Sizes, flops_of
from benchmarks.material import Material, decoder_of, features_of, tokens_of
from benchmarks.measure import Run, compare, interleaved
from benchmarks.searching import MAX_LENGTH, PACE, opinionated, search, search_singly
from benchmarks.steps import difference
from captioning.models.decoders.recurrent import RecurrentDecoder
from captioning.models.features import FeatureDims

DIMS, WORDS, CELLS = FeatureDims(grid=12, pooled=12), 21, 4
CPU = torch.device("cpu")
DECODERS = ("attention", "adaptive", "lstm", "gru", "rnn")


def toy(name):
    return decoder_of(name, CPU, vocabulary=WORDS, dims=DIMS, size=8)


def toy_batch():
    lengths = [3, 1, 6, 2, 6, 4]
    return Material(features_of(len(lengths), CELLS, DIMS), tokens_of(lengths, WORDS))


@pytest.mark.parametrize("name", ["attention", "lstm", "gru", "rnn"])
def test_a_baseline_has_the_loss_and_the_gradients_of_our_decoder(name):
    decoder, material = toy(name), toy_batch()
    plain = plain_of(decoder)
    assert difference(decoder, plain, material) < 1e-5
    with torch.no_grad():
        plain.vocabulary.bias[5] += 0.1  # the check can fail
    assert difference(decoder, plain, material) > 1e-4


@pytest.mark.parametrize("name", DECODERS)
def test_the_formula_counts_the_operations_of_the_forward_pass(name):
    assert 0.98 < counted_against_formula(toy(name)) < 1.02


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("injection", ["pre", "par", "merge", "pre_par", "add", "read"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_formula_knows_where_the_image_goes(cell, injection, layers):
    sizes = {"hidden_size": 8, "embedding_size": 9, "layers": layers}  # apart, so that none passes for the other
    decoder = RecurrentDecoder(DIMS, WORDS, cell=cell, injection=injection, dropout=0.0, **sizes)
    assert 0.98 < counted_against_formula(decoder) < 1.02


def counted_against_formula(decoder):
    material = toy_batch()
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix)})
    with torch.backends.mkldnn.flags(enabled=False), counter, torch.no_grad():
        decoder(material.features, material.tokens[:, :-1])
    B, T = material.tokens[:, :-1].shape
    return counter.get_total_flops() / flops_of(decoder, DIMS, Sizes(B, CELLS, B * T)).forward


def test_the_ratio_of_two_known_times_is_found():
    times = interleaved(Run(CPU, rounds=2), {"slow": lambda: time.sleep(0.06), "fast": lambda: time.sleep(0.02)})
    ratio, (lowest, highest) = compare(times["slow"], times["fast"])
    assert lowest <= ratio <= highest
    assert 1.5 < ratio < 6


@pytest.mark.parametrize("name", ["attention", "lstm", "gru", "rnn"])
@pytest.mark.parametrize("beam_size", [1, 3, 5])
def test_the_plain_search_finds_the_captions_of_ours(name, beam_size):
    features = features_of(7, CELLS, DIMS)
    decoder = opinionated(name, features, vocabulary=300, dims=DIMS, size=32)
    ours = search(decoder, features, beam_size)
    assert search_each(plain_of(decoder), features, beam_size, MAX_LENGTH, PACE) == ours
    assert search_singly(decoder, features, beam_size) == ours
    assert len({len(caption) for caption in ours}) > 1  # images end at different times
