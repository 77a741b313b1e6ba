"""What tutorials do, plainly rendered: the other side of every ratio. Same mathematics and same weights as our decoders.

Our own words, none of theirs. `PlainAttention` follows the manner of sgrvinod's tutorial: captions sorted by length, a batch
that shrinks as captions end, and a time loop which projects the whole grid, embeds nothing in advance and makes the
vocabulary product word by word. `PlainRecurrent` follows yunjey's: one packed nn.LSTM (GRU, RNN), and the vocabulary product on packed
words alone. `search_one` is the beam search of both camps: one image, its features copied for every hypothesis.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from captioning.models.decoders.attention import SoftAttentionDecoder
from captioning.models.decoders.recurrent import RecurrentDecoder
from captioning.models.features import ImageFeatures

PAD, BOS, EOS, UNK = range(4)
Tensors = dict[str, Tensor]


class PlainAttention(nn.Module):
    """Soft attention, everything inside the time loop."""

    def __init__(self, decoder: SoftAttentionDecoder):
        super().__init__()
        V, E = decoder.words.vectors.weight.shape
        D, A = decoder.attention.key.in_features, decoder.attention.key.out_features
        H = decoder.from_hidden.in_features
        self.embedding = nn.Embedding(V, E, padding_idx=PAD)
        self.project_cells, self.project_hidden = nn.Linear(D, A), nn.Linear(H, A)
        self.to_score = nn.Linear(A, 1, bias=False)
        self.first_hidden, self.first_cell = nn.Linear(D, H), nn.Linear(D, H)
        self.gate = nn.Linear(H, D)
        self.cell = nn.LSTMCell(E + D, H)
        self.from_hidden, self.from_seen = nn.Linear(H, E), nn.Linear(D, E, bias=False)
        self.vocabulary = nn.Linear(E, V)
        self.load_state_dict(self.renamed(decoder.state_dict()))

    @staticmethod
    def renamed(ours: Tensors) -> Tensors:
        """Our decoder's tensors (weights, or their gradients) under the names and in the layout of this one."""
        first = {kind: ours[f"start.{kind}"].chunk(2) for kind in ("weight", "bias")}
        A, D = ours["attention.key.weight"].shape
        from_hidden = {kind: ours[f"from_hidden.{kind}"].tensor_split([A, A + D]) for kind in ("weight", "bias")}
        inputs = torch.cat([ours["from_word.weight"], ours["from_seen.weight"]], dim=1)
        return {
            "embedding.weight": ours["words.vectors.weight"],
            "project_cells.weight": ours["attention.key.weight"],
            "project_cells.bias": ours["attention.key.bias"],
            **{f"project_hidden.{kind}": parts[0] for kind, parts in from_hidden.items()},
            "to_score.weight": ours["attention.score.weight"],
            **{f"first_hidden.{kind}": parts[0] for kind, parts in first.items()},
            **{f"first_cell.{kind}": parts[1] for kind, parts in first.items()},
            **{f"gate.{kind}": parts[1] for kind, parts in from_hidden.items()},
            "cell.weight_ih": torch_order(inputs),
            "cell.weight_hh": torch_order(from_hidden["weight"][2]),
            "cell.bias_ih": torch_order(ours["from_word.bias"]),
            "cell.bias_hh": torch_order(from_hidden["bias"][2]),
            "from_hidden.weight": ours["answer_hidden.weight"],
            "from_hidden.bias": ours["answer_hidden.bias"],
            "from_seen.weight": ours["answer_seen.weight"],
            "vocabulary.weight": ours["words.out.weight"],
            "vocabulary.bias": ours["words.out.bias"],
        }

    def begin(self, features: ImageFeatures) -> tuple[Tensor, ...]:
        mean = features.grid.mean(dim=1)
        return torch.tanh(self.first_hidden(mean)), torch.tanh(self.first_cell(mean))

    def step(self, features: ImageFeatures, word: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Word vectors (R, E) and features of as many rows -> logits (R, V) and the state."""
        grid, (hidden, cell) = features.grid, state
        scores = self.to_score(torch.tanh(self.project_cells(grid) + self.project_hidden(hidden).unsqueeze(1))).squeeze(2)
        weights = F.softmax(scores, dim=1)
        seen = (grid * weights.unsqueeze(2)).sum(dim=1)
        seen = torch.sigmoid(self.gate(hidden)) * seen
        hidden, cell = self.cell(torch.cat([word, seen], dim=1), (hidden, cell))
        return self.vocabulary(word + self.from_hidden(hidden) + self.from_seen(seen)), (hidden, cell)

    def loss(self, features: ImageFeatures, tokens: Tensor) -> Tensor:
        """Mean cross-entropy a word."""
        lengths, order = (tokens[:, 1:] != PAD).sum(dim=1).sort(descending=True)
        tokens, features = tokens[order], features.select(order)
        words = self.embedding(tokens[:, :-1])
        state = self.begin(features)
        steps = lengths.tolist()
        logits = words.new_zeros(len(tokens), steps[0], self.vocabulary.out_features)
        for time in range(steps[0]):
            still = sum(length > time for length in steps)
            its = ImageFeatures(features.grid[:still], features.pooled[:still])
            said, state = self.step(its, words[:still, time], (state[0][:still], state[1][:still]))
            logits[:still, time] = said
        return packed_loss(logits, tokens[:, 1:], lengths)


class PlainRecurrent(nn.Module):
    """A packed nn.LSTM, nn.GRU or nn.RNN that begins with the image (injection `init`)."""

    def __init__(self, decoder: RecurrentDecoder):
        super().__init__()
        assert decoder.injection == "init" and decoder.layers == 1 and isinstance(decoder.image, nn.Linear)
        V, E = decoder.words.vectors.weight.shape
        H = decoder.rnn.hidden_size
        self.has_cell = decoder.has_cell
        self.image = nn.Linear(decoder.image.in_features, decoder.image.out_features)
        self.embedding = nn.Embedding(V, E, padding_idx=PAD)
        self.rnn = type(decoder.rnn)(E, H, batch_first=True)
        self.vocabulary = nn.Linear(H, V)
        self.load_state_dict(self.renamed(decoder.state_dict()))

    @staticmethod
    def renamed(ours: Tensors) -> Tensors:
        names = {"words.vectors": "embedding", "words.out": "vocabulary", "image": "image", "rnn": "rnn"}
        return {name.replace(old, new, 1): value for name, value in ours.items() for old, new in names.items() if name.startswith(old)}

    def begin(self, features: ImageFeatures) -> tuple[Tensor, ...]:
        return torch.tanh(self.image(features.pooled)).unsqueeze(0).chunk(2 if self.has_cell else 1, dim=2)

    def step(self, features: ImageFeatures, word: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        before = tuple(part.contiguous() for part in state)  # (1, R, H)
        x, after = self.rnn(word.unsqueeze(1), before if self.has_cell else before[0])
        return self.vocabulary(x.squeeze(1)), after if self.has_cell else (after,)

    def loss(self, features: ImageFeatures, tokens: Tensor) -> Tensor:
        lengths, order = (tokens[:, 1:] != PAD).sum(dim=1).sort(descending=True)
        tokens, features = tokens[order], features.select(order)
        state = tuple(part.contiguous() for part in self.begin(features))
        packed = pack_padded_sequence(self.embedding(tokens[:, :-1]), lengths.cpu(), batch_first=True)
        hidden, _ = self.rnn(packed, state if self.has_cell else state[0])
        targets = pack_padded_sequence(tokens[:, 1:], lengths.cpu(), batch_first=True)
        return F.cross_entropy(self.vocabulary(hidden.data), targets.data)


Plain = PlainAttention | PlainRecurrent


def plain_of(decoder: nn.Module) -> Plain:
    """The plain baseline with this decoder's weights."""
    model = PlainAttention(decoder) if isinstance(decoder, SoftAttentionDecoder) else PlainRecurrent(decoder)  # type: ignore[arg-type]
    return model.to(next(decoder.parameters()).device)


def torch_order(gates: Tensor) -> Tensor:
    """Our gates stand as write, keep, show, new; torch's LSTMCell has the last two the other way round."""
    write, keep, show, new = gates.chunk(4)
    return torch.cat([write, keep, new, show])


def packed_loss(logits: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    packed = pack_padded_sequence(logits, lengths.cpu(), batch_first=True)
    return F.cross_entropy(packed.data, pack_padded_sequence(targets, lengths.cpu(), batch_first=True).data)


@torch.no_grad()
def search_one(model: Plain, features: ImageFeatures, beam_size: int, max_length: int, pace: float = 0.0) -> list[int]:
    """Beam search for one image (1, N, D): features copied for every hypothesis, one step after another, lists of finished ones.

    pace: added to the logit of <eos> with every word."""
    K, V = beam_size, model.vocabulary.out_features
    copies = ImageFeatures(*(part.expand(K, *part.shape[1:]) for part in features))
    state = model.begin(copies)
    batch = 0 if isinstance(model, PlainAttention) else 1  # where the hypotheses' dimension is
    words = torch.full((K, 1), BOS, device=features.pooled.device)
    sums = torch.zeros(K, 1, device=words.device)
    done: list[list[int]] = []
    scores: list[float] = []
    for length in range(1, max_length + 1):
        logits, state = model.step(copies, model.embedding(words[:, -1]), state)
        logits[:, [PAD, BOS, UNK]] = -math.inf
        logits[:, EOS] += pace * length
        totals = sums + F.log_softmax(logits, dim=1)
        best, places = (totals[0] if length == 1 else totals.view(-1)).topk(K)
        words = torch.cat([words[places // V], (places % V).unsqueeze(1)], dim=1)
        over = [index for index, word in enumerate(words[:, -1].tolist()) if word == EOS or length == max_length]
        going = [index for index in range(K) if index not in over]
        done += [words[index, 1:].tolist() for index in over]
        scores += [float(best[index]) for index in over]
        K -= len(over)
        if K == 0:
            break
        parents = (places // V)[going]
        state = tuple(part.index_select(batch, parents) for part in state)
        copies = ImageFeatures(*(part[parents] for part in copies))
        words, sums = words[going], best[going].unsqueeze(1)
    return done[max(range(len(scores)), key=scores.__getitem__)]


def search_each(model: Plain, features: ImageFeatures, beam_size: int, max_length: int, pace: float = 0.0) -> list[list[int]]:
    """Image after image."""
    singles = [ImageFeatures(*(part[row : row + 1] for part in features)) for row in range(len(features.pooled))]
    return [search_one(model, single, beam_size, max_length, pace) for single in singles]


def bleu_a_batch(hypotheses: Sequence[str], references: Sequence[Sequence[str]], batch_size: int = 32) -> float:
    """BLEU-4 as training loops compute it in passing: every caption visits its image's references anew, batch by batch, and the
    batches' scores are averaged. (The result is not a corpus BLEU: this is here for its cost.)"""
    visits = [(hypothesis.split(), [text.lower().split() for text in its]) for hypothesis, its in zip(hypotheses, references) for _ in its]
    batches = [visits[start : start + batch_size] for start in range(0, len(visits), batch_size)]
    return sum(batch_bleu(batch) for batch in batches) / len(batches)


def batch_bleu(batch: Sequence[tuple[list[str], list[list[str]]]]) -> float:
    precisions, length, wanted = [], 0, 0
    for hypothesis, references in batch:
        length += len(hypothesis)
        wanted += min((abs(len(reference) - len(hypothesis)), len(reference)) for reference in references)[1]
    for n in range(1, 5):
        hits = total = 0
        for hypothesis, references in batch:
            grams = [tuple(hypothesis[i : i + n]) for i in range(len(hypothesis) - n + 1)]
            theirs = [[tuple(reference[i : i + n]) for i in range(len(reference) - n + 1)] for reference in references]
            hits += sum(min(grams.count(gram), max(its.count(gram) for its in theirs)) for gram in set(grams))
            total += len(grams)
        precisions.append(hits / total if total else 0.0)
    if not all(precisions):
        return 0.0
    return min(1.0, math.exp(1 - wanted / length)) * math.exp(sum(map(math.log, precisions)) / 4)
