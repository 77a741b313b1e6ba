"""Search: from step to captions. Knows nothing of images or of decoders."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captioning.kinds import Count, Number, Whole

PAD, BOS, EOS, UNK = range(4)
STAY = 0.75  # images that are done leave the batch when no more than this share goes on
State = tuple
Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""(token (R,), state) -> (logits (R, V), state), with an image's hypotheses side by side: R = B*K."""


class Hypotheses(NamedTuple):
    """K of them an image: as many as the search was asked for."""

    tokens: Tensor  # (B, K, T) without <bos>; <pad> after <eos>
    scores: Tensor  # (B, K), best first; -inf where there are fewer than K


Search = Callable[[Step, Any], Hypotheses]


def select(state: State, rows: Tensor, images: Tensor | None = None) -> State:
    """The state of these hypotheses; `images` are the images that remain, where some have left."""
    memory, *moving = state
    if images is not None:
        memory = type(memory)(part[images] for part in memory)
    return type(state)(memory, *(select(part, rows, images) if isinstance(part, tuple) else part[rows] for part in moving))


def rows_of(state: State) -> Tensor:
    """Any tensor of the state with one row a hypothesis."""
    return rows_of(state[1]) if isinstance(state[1], tuple) else state[1]


@dataclass(frozen=True)
class Beam:
    """Beam search over all images at once; a beam of one is greedy search.

    As in the field's own code since Show, Attend and Tell, a finished hypothesis leaves its beam and the image goes on with one
    beam less, until none is open, or none of the open ones can become one of the `n_best`.

    n_best: so many hypotheses are returned, best first.
    length_penalty: hypotheses are ranked by log p / length ** length_penalty (<eos> counts); 0 is log p, 1 the mean per word.
    no_repeat_ngram: no n words in a row may come twice; 0 allows it.
    """

    beam_size: Count = 3
    n_best: Count = 1
    max_length: Count = 30
    min_length: Whole = 0
    length_penalty: Number = 0.0
    no_repeat_ngram: Whole = 0
    allow_unknown: bool = False

    def __post_init__(self) -> None:
        if self.n_best > self.beam_size:
            raise ValueError(f"n_best={self.n_best} is more than beam_size={self.beam_size}")

    def __call__(self, step: Step, state: State) -> Hypotheses:
        step, state = constrained(step, state, self)
        some = rows_of(state)
        images, device, K, T = len(some), some.device, self.beam_size, self.max_length
        places = torch.arange(images, device=device)  # where the image of each remaining row stands in the results
        state = select(state, places.repeat_interleave(K))
        token = torch.full((images * K,), BOS, device=device)
        history = torch.full((images, K, T), PAD, device=device)
        scores = torch.full((images, K), -torch.inf, device=device)
        scores[:, 0] = 0  # all K beams begin equal: let one of them speak
        live = torch.full((images, 1), K, device=device)
        tokens = torch.full((images, K + 1, T), PAD, device=device)  # the last row takes what is thrown away
        ranked = torch.full((images, K + 1), -torch.inf, device=device)
        slot = torch.arange(K, device=device)

        for length in range(1, T + 1):
            logits, state = step(token, state)
            words = logits.float().log_softmax(dim=-1).unflatten(0, (-1, K))  # (B, K, V)
            scores, chosen = (scores[:, :, None] + words).flatten(1).topk(K)
            parent, word = chosen // words.shape[2], chosen % words.shape[2]
            history = history.gather(1, parent[:, :, None].expand_as(history))
            history[:, :, length - 1] = word
            scores = scores.masked_fill(slot >= live, -torch.inf)
            ended = (scores > -torch.inf) & ((word == EOS) | (length == T))
            target = torch.where(ended, K - live + ended.cumsum(dim=1) - 1, K)
            tokens[places] = tokens[places].scatter(1, target[:, :, None].expand_as(history), history)
            ranked[places] = ranked[places].scatter(1, target, scores / length**self.length_penalty)
            live = live - ended.sum(dim=1, keepdim=True)
            scores = scores.masked_fill(ended, -torch.inf)

            # an open hypothesis only loses log p; at best it loses nothing, and is divided by the longest length
            hope = scores.amax(dim=1) / T**self.length_penalty
            going = hope > ranked[places, :K].topk(self.n_best)[0][:, -1]
            left = going.nonzero().flatten()  # the one wait for the device in a step
            if len(left) == 0:
                break
            if len(left) > STAY * len(going):  # few are done: to take them out would copy what the others attend to
                left = torch.arange(len(going), device=device)
            rows = (torch.arange(len(going), device=device)[:, None] * K + parent)[left].flatten()
            state = select(state, rows, left if len(left) < len(going) else None)
            token = word[left].flatten()
            history, scores, live, places = history[left], scores[left], live[left], places[left]

        ranked, order = ranked[:, :K].sort(dim=1, descending=True, stable=True)
        tokens = tokens.gather(1, order[:, : self.n_best, None].expand(-1, -1, T))
        return Hypotheses(tokens[:, :, :length], ranked[:, : self.n_best])


# Wrappers around step: the search itself has no tricks in it.


class Told(NamedTuple):
    """A wrapper's state: the inner one, and the words so far."""

    memory: tuple
    inner: State
    history: Tensor  # (B*K, t)


def with_history(change: Callable[[Tensor, Tensor], Tensor], step: Step, state: State) -> tuple[Step, Told]:
    """A step whose logits are changed by `change(logits (R, V), history (R, t) with <bos> first)`."""

    def told_step(token: Tensor, told: Told) -> tuple[Tensor, Told]:
        history = torch.cat([told.history, token[:, None]], dim=1)
        logits, inner = step(token, told.inner)
        return change(logits, history), Told((), inner, history)

    some = rows_of(state)
    return told_step, Told((), state, torch.empty(len(some), 0, dtype=torch.long, device=some.device))


def constrained(step: Step, state: State, settings: Any) -> tuple[Step, State]:
    """Never <pad> or <bos>, <unk> only where allowed, no <eos> before the minimum length, no n-gram twice."""
    banned = [EOS, PAD, BOS, UNK][: 3 if settings.allow_unknown else 4]
    words = torch.tensor(banned, device=rows_of(state).device)

    def change(logits: Tensor, history: Tensor) -> Tensor:
        too_early = history.shape[1] <= settings.min_length
        logits = logits.index_fill(1, words[0 if too_early else 1 :], -torch.inf)
        if settings.no_repeat_ngram:
            logits = without_repeats(logits, history, settings.no_repeat_ngram)
        return logits

    return with_history(change, step, state)


def without_repeats(logits: Tensor, history: Tensor, n: int) -> Tensor:
    """Ban every word that would complete an n-gram which the history already has."""
    if history.shape[1] < n:
        return logits
    grams = history.unfold(1, n, 1)  # (R, places, n)
    begun = (grams[:, :, :-1] == history[:, None, history.shape[1] - n + 1 :]).all(dim=-1)
    bans = torch.zeros_like(logits).scatter_add(1, grams[:, :, -1], begun.to(logits.dtype))
    bans[:, EOS] = 0
    return logits.masked_fill(bans > 0, -torch.inf)
