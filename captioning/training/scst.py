"""Self-critical sequence training (Rennie et al. 2017): captions that the model says itself, weighed by what a metric thinks of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from captioning.data.dataset import Batch
from captioning.data.records import Record
from captioning.data.vocabulary import Vocabulary
from captioning.kinds import Count, Number, Positive
from captioning.metrics.bleu import bleu
from captioning.metrics.score import References
from captioning.models.caption_model import CaptionModel
from captioning.models.decoders.base import DecoderOutput
from captioning.sampling import Sample
from captioning.search import BOS, EOS, PAD, UNK, Beam
from captioning.training.losses import Lesson, Loss, Turn, cross_entropy

END = "␃"  # stands behind every reference and every finished caption; no vocabulary has it
NEVER = -1e4  # a logit whose probability is 0 in every precision


@dataclass
class SelfCritical(Loss):
    """Minus the expected reward of a sampled caption, by REINFORCE: -log p of each sample, times how much better than a baseline it is.

    cider, bleu4: the reward is cider * CIDEr-D (0 to 10) + bleu4 * BLEU-4 (0 to 1), each of a caption alone, as COCO's code has them:
        a caption without a common 4-gram has a BLEU-4 of nearly 0.
    samples: captions drawn for an image.
    baseline: `mean`, of the image's other samples (Luo 2020, "A better variant of self-critical sequence training"); `greedy`, the reward
        of the greedy caption (Rennie et al., equation 9). Neither changes the expected gradient.
    temperature: of the drawing; the log p is of what is drawn from.
    max_length: a caption without <eos> among so many words is unfinished, and its reward 0.

    Everything is drawn in eval mode: the samples and the greedy caption are those of the model that will be used, and nothing but the
    gradient's own pass has dropout. <pad>, <bos> and <unk> are never drawn, as in a search. The sum is divided by the captions, not by
    their words: the words' number is drawn too, and to divide by it would be another expectation.
    """

    cider: Number = 1.0
    bleu4: Number = 0.0
    samples: Count = 5
    baseline: Literal["mean", "greedy"] = "mean"
    temperature: Positive = 1.0
    max_length: Count = 30

    counts = "captions"
    facts = ("reward", "baseline", "ended")
    reads_captions = False

    def __post_init__(self) -> None:
        if self.baseline == "mean" and self.samples < 2:
            raise ValueError(f"samples={self.samples}: baseline=mean needs at least 2")
        if not self.cider and not self.bleu4:
            raise ValueError("cider=0 and bleu4=0: one of them must be more")

    def read(self, records: Sequence[Record], vocabulary: Vocabulary) -> None:
        """Raw references and their document frequencies. They end with END: else the reward would hardly mind captions that stop at
        `with a`, as the words which are missing there might have been wrong ones."""
        self.vocabulary, self.images = vocabulary, {record.image_id: place for place, record in enumerate(records)}
        self.references = References([[f"{text} {END}" for text in record.captions] for record in records])

    def reward(self, tokens: Tensor, image_ids: Sequence[str]) -> Tensor:
        """Captions (B*K, T), an image's side by side -> (B*K,) on the CPU. A caption without <eos> is worth nothing."""
        texts = [f"{self.vocabulary.decode(ids)} {END}" for ids in tokens.tolist()]
        images = np.repeat([self.images[image_id] for image_id in image_ids], len(texts) // len(image_ids))
        compared = self.references.compare(texts, images.tolist())
        reward = np.zeros(len(texts))
        if self.cider:
            reward += self.cider * self.references.cider.each(compared)
        if self.bleu4:
            reward += self.bleu4 * bleu(self.references.bleu.each(compared).sums(np.eye(len(texts))))["bleu4"]
        return torch.from_numpy(reward).float() * (tokens == EOS).any(dim=1).cpu()

    def count(self, batch: Batch) -> int:
        return len(batch.image_ids) * self.samples

    def lesson(self, model: CaptionModel, batch: Batch, turn: Turn) -> Lesson:
        seed = int(torch.randint(2**62, (), generator=turn.draws))
        drawn, greedy = self.say(model, batch.images, seed)  # (B, K, T)
        reward = self.reward(drawn.flatten(0, 1), batch.image_ids).unflatten(0, (-1, self.samples))  # (B, K)
        if greedy is None:
            baseline = (reward.sum(dim=1, keepdim=True) - reward) / (self.samples - 1)
        else:
            baseline = self.reward(greedy.flatten(0, 1), batch.image_ids)[:, None].expand_as(reward)
        said = drawn.flatten(0, 1)
        advantage = (reward - baseline).flatten().to(said.device)
        tokens = torch.cat([torch.full_like(said[:, :1], BOS), said], dim=1)
        ended = (said == EOS).any(dim=1)
        facts = [its.sum().to(said.device) for its in (reward, baseline, ended)]
        return Lesson(tokens, tokens, advantage[:, None] * (said != PAD), facts)

    def say(self, model: CaptionModel, images: Any, seed: int) -> tuple[Tensor, Tensor | None]:
        """Captions drawn (B, K, T), and the greedy one (B, 1, T) if it is the baseline."""
        sample = Sample(self.samples, self.temperature, seed=seed, max_length=self.max_length)
        greedy = Beam(1, max_length=self.max_length)
        training = model.training
        model.eval()
        with torch.no_grad():
            state = model.decoder.init_state(model.encoder(images))
            drawn = sample(model.decoder.step, state).tokens
            best = greedy(model.decoder.step, state).tokens if self.baseline == "greedy" else None
        model.train(training)
        return drawn, best

    def __call__(self, output: DecoderOutput, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        never = torch.tensor([PAD, BOS, UNK], device=targets.device)
        logits = (output.logits / self.temperature).index_fill(2, never, NEVER)
        return cross_entropy(DecoderOutput(logits, None), targets, weights=weights)
