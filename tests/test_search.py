"""Laws of search, on a toy language whose every caption can be enumerated."""

import itertools
from typing import NamedTuple

import pytest
import torch

from captioning.data.vocabulary import Vocabulary
from captioning.sampling import DiverseBeam, Sample
from captioning.search import BOS, EOS, PAD, UNK, Beam, without_repeats

V = 7  # four specials and three words


class Prefix(NamedTuple):
    memory: tuple
    said: torch.Tensor  # (R, 8), filled from the left
    length: torch.Tensor  # (R,)


def language(images: int):
    """A step whose logits depend on the image and on every word so far, and the state to begin with."""
    table = torch.randn(images, 4000, V, generator=torch.Generator().manual_seed(3)) * 2

    def step(token, state):
        rows = torch.arange(len(token))
        said = state.said.clone()
        said[rows, state.length] = token
        powers = torch.tensor([V**i for i in range(said.shape[1])])
        place = ((said * powers).sum(dim=1) * 31 + state.length * 7) % 4000
        image = rows // (len(token) // len(state.memory[0]))
        return state.memory[0][image, place], Prefix(state.memory, said, state.length + 1)

    return step, Prefix((table,), torch.zeros(images, 12, dtype=torch.long), torch.zeros(images, dtype=torch.long))


def log_p(step, state, image, caption):
    state = Prefix((state.memory[0][image : image + 1],), state.said[:1], state.length[:1])
    total = 0.0
    for before, word in zip([BOS, *caption], caption):
        logits, state = step(torch.tensor([before]), state)
        logits[:, [PAD, BOS, UNK]] = -torch.inf
        total += logits.log_softmax(-1)[0, word].item()
    return total


def text(tokens):
    return [word for word in tokens.tolist() if word != PAD]


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_beam_as_wide_as_the_space_equals_exhaustive_search(penalty):
    step, state = language(3)
    found = Beam(100, 10, max_length=4, length_penalty=penalty)(step, state)
    ended = [[*inner, EOS] for n in range(4) for inner in itertools.product((4, 5, 6), repeat=n)]
    captions = ended + [list(inner) for inner in itertools.product((4, 5, 6), repeat=4)]
    for image in range(3):
        scored = sorted(((log_p(step, state, image, c) / len(c) ** penalty, c) for c in captions), reverse=True)
        for rank in range(10):
            assert found.scores[image, rank].item() == pytest.approx(scored[rank][0], abs=1e-4)
            assert text(found.tokens[image, rank]) == scored[rank][1]


@pytest.mark.parametrize("beam_size", [1, 2, 3, 5])
def test_a_beam_equals_a_naive_one_that_rescores_every_prefix(beam_size):
    step, state = language(6)
    found = Beam(beam_size, beam_size, max_length=7)(step, state)
    for image in range(6):
        open_, done = [[]], []
        for length in range(1, 8):
            scored = sorted(((log_p(step, state, image, [*p, w]), [*p, w]) for p in open_ for w in (EOS, 4, 5, 6)), reverse=True)
            kept = scored[: beam_size - len(done)]
            done += [item for item in kept if item[1][-1] == EOS or length == 7]
            open_ = [item[1] for item in kept if item[1][-1] != EOS and length < 7]
        done.sort(reverse=True)
        assert [text(found.tokens[image, rank]) for rank in range(len(done))] == [caption for _, caption in done]
        torch.testing.assert_close(found.scores[image, : len(done)], torch.tensor([s for s, _ in done]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("n_best", [1, 2])
def test_a_search_for_few_ends_earlier_with_the_best_of_a_search_for_all(penalty, n_best):
    step, state = language(6)
    calls = {}

    def counted(name):
        def counting(token, state):
            calls[name] = calls.get(name, 0) + len(token)
            return step(token, state)

        return counting

    few = Beam(5, n_best, max_length=9, length_penalty=penalty)(counted("few"), state)
    found = Beam(5, 5, max_length=9, length_penalty=penalty)(counted("all"), state)
    assert few.tokens.shape[:2] == (6, n_best) and calls["few"] <= calls["all"]
    assert penalty or calls["few"] < calls["all"]
    torch.testing.assert_close(few.scores, found.scores[:, :n_best])
    for image in range(6):
        assert [text(caption) for caption in few.tokens[image]] == [text(caption) for caption in found.tokens[image, :n_best]]


@pytest.mark.parametrize("search", [Beam(1), Beam(4), Sample(3), DiverseBeam(3, 2)])
def test_a_search_always_ends_with_a_hypothesis(search):
    def never_ends(token, state):
        logits = torch.zeros(len(token), V)
        logits[:, EOS] = -torch.inf
        return logits, state

    found = search(never_ends, language(2)[1])
    assert found.tokens.shape[2] == 30 and torch.isfinite(found.scores[:, 0]).all()
    assert (found.tokens[:, 0] >= 4).all()


def test_lengths_are_kept_and_special_words_never_said():
    step, state = language(5)
    found = Beam(3, 3, max_length=6, min_length=3)(step, state)
    for caption in found.tokens.flatten(0, 1):
        words = text(caption)
        assert len(words) - (words[-1] == EOS) >= 3 and len(words) <= 6
        assert not {BOS, UNK} & set(words)
    liked = lambda token, state: (torch.eye(V)[UNK].expand(len(token), V) * 50, state)  # noqa: E731
    assert (Beam(1, allow_unknown=True, max_length=3)(liked, state).tokens == UNK).all()


def test_hypotheses_come_best_first_and_differ():
    step, state = language(4)
    found = Beam(5, 5, max_length=6)(step, state)
    assert (found.scores.diff(dim=1) <= 0).all()
    for image in range(4):
        assert len({tuple(text(caption)) for caption in found.tokens[image]}) == 5


@pytest.mark.parametrize("search", [Beam(3, 3, no_repeat_ngram=2), Sample(4, no_repeat_ngram=2), DiverseBeam(2, 2, no_repeat_ngram=2)])
def test_no_ngram_comes_twice(search):
    def stutters(token, state):
        return torch.tensor([0, 0, -9.0, 0, 3, 2, 1]).expand(len(token), V), state

    for caption in search(stutters, language(2)[1]).tokens.flatten(0, 1):
        pairs = list(itertools.pairwise([BOS, *text(caption)]))
        assert len(pairs) == len(set(pairs))
    logits = torch.zeros(1, V)
    assert without_repeats(logits, torch.tensor([[BOS, 4, 5, 4]]), 2)[0].isinf().nonzero().flatten().tolist() == [5]


def test_samples_follow_the_distribution_and_the_seed():
    odds = torch.tensor([0, 0, 0.0, 0, 0.5, 0.3, 0.2]).log()
    step = lambda token, state: (odds.expand(len(token), V), state)  # noqa: E731
    found = Sample(3000, max_length=1)(step, language(1)[1])
    share = torch.bincount(found.tokens.flatten(), minlength=V) / 3000
    torch.testing.assert_close(share, odds.exp(), atol=0.03, rtol=0)
    again = Sample(3000, max_length=1)(step, language(1)[1])
    assert torch.equal(found.tokens, again.tokens)
    assert not torch.equal(found.tokens, Sample(3000, max_length=1, seed=1)(step, language(1)[1]).tokens)
    assert set(Sample(500, max_length=1, top_k=2)(step, language(1)[1]).tokens.unique().tolist()) == {4, 5}
    assert set(Sample(500, max_length=1, top_p=0.6)(step, language(1)[1]).tokens.unique().tolist()) == {4, 5}
    assert set(Sample(500, max_length=1, top_p=0.4)(step, language(1)[1]).tokens.unique().tolist()) == {4}


def test_diverse_groups_avoid_each_other_more_the_stronger_they_are_pushed():
    step, state = language(8)

    def distinct(strength):
        found = DiverseBeam(3, 1, strength=strength, max_length=6)(step, state)
        return sum(len({tuple(text(caption)) for caption in image}) for image in found.tokens)

    assert distinct(0.0) == 8  # three times the same
    assert distinct(5.0) > 20


def test_search_and_vocabulary_agree_on_the_special_words():
    assert (Vocabulary.pad, Vocabulary.bos, Vocabulary.eos, Vocabulary.unk) == (PAD, BOS, EOS, UNK)
