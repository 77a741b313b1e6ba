"""Searches for several different captions of an image: sampling, and beams that avoid each other."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captioning.kinds import Count, Fraction, Number, Positive, Whole
from captioning.search import BOS, EOS, PAD, Beam, Hypotheses, Step, Told, constrained, rows_of, select, with_history


@dataclass(frozen=True)
class Sample:
    """Draw `samples` captions an image. The draws depend on the seed and on the images of the batch; scores are log p at temperature 1."""

    samples: Count = 1
    temperature: Positive = 1.0
    top_k: Whole = 0
    top_p: Fraction = 1.0
    seed: Whole = 0
    max_length: Count = 30
    min_length: Whole = 0
    no_repeat_ngram: Whole = 0
    allow_unknown: bool = False

    def __call__(self, step: Step, state: Any) -> Hypotheses:
        step, state = constrained(step, state, self)
        some = rows_of(state)
        draws = torch.Generator(some.device).manual_seed(self.seed)
        state = select(state, torch.arange(len(some), device=some.device).repeat_interleave(self.samples))
        token = torch.full((len(some) * self.samples,), BOS, device=some.device)
        score, tokens = torch.zeros(len(token), device=some.device), []
        for _ in range(self.max_length):
            ended = (token == EOS) | (token == PAD)
            logits, state = step(token, state)
            likely = truncated(logits.float() / self.temperature, self.top_k, self.top_p)
            token = draw(likely, draws).masked_fill(ended, PAD)
            own = logits.float().log_softmax(dim=-1).gather(1, token[:, None])[:, 0]
            score = score + own.masked_fill(ended, 0)
            tokens.append(token)
            if bool(((token == EOS) | (token == PAD)).all()):
                break
        scores, order = score.unflatten(0, (-1, self.samples)).sort(dim=1, descending=True, stable=True)
        found = torch.stack(tokens, dim=1).unflatten(0, (-1, self.samples))  # (B, K, T)
        return Hypotheses(found.gather(1, order[:, :, None].expand_as(found)), scores)


def draw(logits: Tensor, draws: torch.Generator | None = None) -> Tensor:
    """(B, V) -> (B,) a word each. Where logits are not finite any word: the loss of it is not finite either, and says so."""
    return torch.multinomial(logits.softmax(dim=-1).nan_to_num(nan=1.0), 1, generator=draws)[:, 0]


@dataclass(frozen=True)
class DiverseBeam:
    """Groups of beams that avoid each other's words (Vijayakumar et al. 2018): a word costs `strength` for each hypothesis of an
    earlier group that has it at the same place. Hypotheses of all groups are returned, ranked by the model's own log p."""

    groups: Count = 3
    beam_size: Count = 1
    strength: Number = 0.5
    max_length: Count = 30
    min_length: Whole = 0
    length_penalty: Number = 0.0
    no_repeat_ngram: Whole = 0
    allow_unknown: bool = False

    def __call__(self, step: Step, state: Any) -> Hypotheses:
        shared = (self.max_length, self.min_length, self.length_penalty, self.no_repeat_ngram, self.allow_unknown)
        beam = Beam(self.beam_size, self.beam_size, *shared)
        found = []  # each (B, K, max_length)
        for _ in range(self.groups):
            tokens = beam(*away_from(found, self.strength, step, state)).tokens
            found.append(torch.nn.functional.pad(tokens, (0, self.max_length - tokens.shape[2]), value=PAD))
        tokens = torch.cat(found, dim=1)
        scores = log_probability(tokens, step, state) / (tokens != PAD).sum(dim=2).clamp(min=1) ** self.length_penalty
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return Hypotheses(tokens.gather(1, order[:, :, None].expand_as(tokens)), scores)


class Pushed(NamedTuple):
    memory: tuple[Tensor]  # what earlier groups said (B, J, T)
    told: Told


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Only the k likeliest words (0: all), and of these the fewest that together have probability top_p."""
    ordered, order = logits.sort(dim=-1, descending=True)
    before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
    drop = before >= top_p
    if top_k:
        drop[:, top_k:] = True
    drop[:, 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)


def away_from(found: list[Tensor], strength: float, step: Step, state: Any) -> tuple[Step, Any]:
    if not found:
        return step, state
    others = torch.cat(found, dim=1)  # (B, J, T)

    def pushed_step(token: Tensor, pushed: Pushed) -> tuple[Tensor, Pushed]:
        logits, told = told_step(token, pushed.told)
        words = pushed.memory[0][:, :, told.history.shape[1] - 1]  # (B, J) what the others said here
        cost = torch.zeros(len(words), logits.shape[1], device=logits.device)
        cost = cost.scatter_add(1, words, torch.full_like(words, strength, dtype=cost.dtype))
        return logits.float().log_softmax(dim=-1) - cost.repeat_interleave(len(logits) // len(cost), dim=0), Pushed(pushed.memory, told)

    told_step, told = with_history(lambda logits, history: logits, step, state)
    return pushed_step, Pushed((others,), told)


def log_probability(tokens: Tensor, step: Step, state: Any) -> Tensor:
    """(B, K, T) -> (B, K): the model's log p of these captions, <eos> included and <pad> not."""
    images, K, _T = tokens.shape
    state = select(state, torch.arange(images, device=tokens.device).repeat_interleave(K))
    said = torch.cat([torch.full_like(tokens[:, :, :1], BOS), tokens], dim=2).flatten(0, 1)  # (R, T + 1)
    total = torch.zeros(len(said), device=tokens.device)
    for now, following in zip(said.unbind(1), said.unbind(1)[1:]):
        logits, state = step(now, state)
        own = logits.float().log_softmax(dim=-1).gather(1, following[:, None])[:, 0]
        total = total + own.masked_fill(following == PAD, 0)
    return total.unflatten(0, (images, K))
