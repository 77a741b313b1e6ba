"""Laws of self-critical training: whose gradient it is, what is rewarded, and where it begins."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CNN, DECODERS, DIMS, SMALL, features, opinionated
from pycocoevalcap.bleu.bleu import Bleu
from safetensors.torch import load_file
from test_training import Killed, gradient, kill_after, same, torchrun, weights
from torch import nn

from captioning.build.compose import as_dict, composed
from captioning.build.jobs import Training
from captioning.build.runs import default_directory
from captioning.data.dataset import Batch
from captioning.data.records import Record
from captioning.data.vocabulary import Vocabulary
from captioning.errors import UserError
from captioning.metrics.score import References
from captioning.models.caption_model import CaptionModel
from captioning.models.decoders.recurrent import RecurrentDecoder
from captioning.models.encoders import GivenFeatures
from captioning.randomness import generator_for
from captioning.search import BOS, EOS, PAD, Beam
from captioning.training import checkpoint
from captioning.training.losses import Turn
from captioning.training.scst import SelfCritical

ATTENTION = [*SMALL, "decoder.attention_size=8"]
SCST = ["loss=scst", "loss.samples=3", "loss.max_length=8", "trainer.samples=0"]
TEXTS = {
    "a": ["Red circle.", "a red circle is here", "one red circle"],
    "b": ["A blue square.", "blue square", "there is a blue square"],
    "c": ["two green bars", "Two bars.", "green bars"],
}
RECORDS = [Record(name, Path(name), texts, "", []) for name, texts in TEXTS.items()]
VOCABULARY = Vocabulary.build(text for texts in TEXTS.values() for text in texts)
TURN = Turn(0.0, generator_for("test"))


def reading(**settings) -> SelfCritical:
    loss = SelfCritical(**settings)
    loss.read(RECORDS, VOCABULARY)
    return loss


def tokens(*texts: str, end: bool = True) -> torch.Tensor:
    rows = [VOCABULARY.encode(text, 99)[1 : None if end else -1] for text in texts]
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def batch(images: int) -> Batch:
    return Batch(features(images), torch.zeros(images, 2, dtype=torch.long), list("abc")[:images])


class Toy:
    """A language of two words and captions of at most three tokens: all of them can be written down, with their probabilities."""

    vocabulary = Vocabulary(["red", "circle"])

    def __init__(self, **settings):
        torch.manual_seed(0)
        decoder = RecurrentDecoder(DIMS, len(self.vocabulary), cell="gru", hidden_size=4, embedding_size=3, dropout=0.0)
        self.model = CaptionModel(GivenFeatures(DIMS), opinionated(decoder))
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.mul_(0.4)
        self.loss = SelfCritical(max_length=3, **settings)
        self.loss.read(
            [Record("a", Path("a"), ["Red circle.", "red"], "", []), Record("b", Path("b"), ["circle"], "", [])], self.vocabulary
        )
        rows: list[tuple[int, ...]] = [()]
        for _ in range(3):
            rows = [(*row, word) for row in rows for word in ((PAD,) if row[-1:] in ((EOS,), (PAD,)) else (EOS, 4, 5))]
        self.captions = torch.tensor(rows)
        self.images = features(1)

    def log_p(self, temperature: float) -> torch.Tensor:
        """(C,) of every caption, by steps and from the definition."""
        state = self.model.decoder.begin(self.images, len(self.captions))
        token, total = torch.full((len(self.captions),), BOS), torch.zeros(len(self.captions))
        for following in self.captions.unbind(1):
            logits, state = self.model.decoder.step(token, state)
            own = (logits[:, [EOS, 4, 5]] / temperature).log_softmax(1)
            place = torch.tensor([0, 0, 0, 0, 1, 2])[following]
            total = total + own.gather(1, place[:, None])[:, 0] * (following != PAD)
            token = following
        return total

    def gradient(self, value: torch.Tensor) -> torch.Tensor:
        self.model.zero_grad()
        value.backward()
        return torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self.model.parameters()])


@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 2, "baseline": "mean"},
        {"samples": 2, "baseline": "mean", "bleu4": 2.0, "temperature": 1.7},
        {"samples": 1, "baseline": "greedy"},
        {"samples": 2, "baseline": "greedy", "cider": 0.0, "bleu4": 50.0},
    ],
    ids=["mean", "mean-mixture-warm", "greedy", "greedy-bleu"],
)
def test_the_expected_gradient_is_that_of_the_expected_reward(settings):
    """By enumeration: every tuple of samples, each as often as it is drawn, against d/dw of -sum p r. No baseline changes it."""
    toy = Toy(**settings)
    loss, K = toy.loss, settings["samples"]
    reward = loss.reward(toy.captions, ["a"])
    assert reward.std() > 0.02
    log_p = toy.log_p(loss.temperature)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-5)
    wanted = toy.gradient(-(log_p.exp() * reward).sum())

    choices = torch.tensor(list(itertools.product(range(len(toy.captions)), repeat=K)))  # (C**K, K)
    p = log_p.detach()[choices].sum(dim=1).exp()
    many = toy.images.select(torch.zeros(len(choices), dtype=torch.long))
    _, best = loss.say(toy.model, many, 0)
    loss.say = lambda model, images, seed: (toy.captions[choices], best)
    taught = loss.lesson(toy.model, Batch(many, torch.zeros(0), ["a"] * len(choices)), TURN)
    weighed = taught.weights * p.repeat_interleave(K)[:, None]
    got = toy.gradient(loss(toy.model(many, taught.inputs), taught.tokens[:, 1:], weighed) / K)
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-3)
    assert wanted.abs().max() > 1e-3


def test_steps_on_a_toy_raise_the_reward():
    toy = Toy(samples=8)
    optimizer = torch.optim.Adam(toy.model.parameters(), lr=0.05)
    names, images = ["a", "b"], features(2)

    def expected():
        with torch.no_grad():
            return float((toy.log_p(1.0).exp() * toy.loss.reward(toy.captions, ["a"])).sum())

    before = expected()
    for step in range(40):
        taught = toy.loss.lesson(toy.model, Batch(images, torch.zeros(0), names), Turn(0.0, generator_for(step)))
        loss = toy.loss(toy.model(images, taught.inputs), taught.tokens[:, 1:], taught.weights) / 16
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert expected() > 2 * before


def test_a_sample_is_measured_by_the_mean_of_the_images_other_samples():
    loss = reading(samples=3)
    said = tokens("red circle", "red bars", "a red circle", "blue square", "two", "a blue square")
    loss.say = lambda *_: (said.unflatten(0, (2, 3)), None)
    reward = loss.reward(said, ["a", "b"])
    assert reward.min() >= 0 and reward[0] > 1 > reward[4]
    taught = loss.lesson(CaptionModel(GivenFeatures(DIMS), DECODERS["gru-init-1"]()), batch(2), TURN)
    for row, others in enumerate(([1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4])):
        expected = (reward[row] - reward[others].mean()) * (said[row] != PAD)
        torch.testing.assert_close(taught.weights[row], expected)
    assert torch.equal(taught.tokens[:, 0], torch.full((6,), BOS)) and torch.equal(taught.tokens[:, 1:], said)
    total, baseline, ended = taught.facts
    torch.testing.assert_close(total, reward.sum())
    torch.testing.assert_close(baseline, reward.sum())
    assert ended == 6 == loss.count(batch(2))


def test_the_greedy_baseline_is_the_reward_of_the_caption_that_greedy_search_finds():
    loss = reading(samples=2, baseline="greedy", max_length=6)
    decoder = opinionated(RecurrentDecoder(DIMS, len(VOCABULARY), cell="lstm", hidden_size=7, embedding_size=6))
    model = CaptionModel(GivenFeatures(DIMS), decoder).train()
    taught = loss.lesson(model, batch(3), TURN)
    assert model.training
    greedy = model.eval().generate(features(3), Beam(1, max_length=6)).tokens[:, 0]
    reward = loss.reward(greedy, list("abc"))
    said = loss.reward(taught.tokens[:, 1:], list("abc"))
    expected = (said - reward.repeat_interleave(2))[:, None] * (taught.tokens[:, 1:] != PAD)
    torch.testing.assert_close(taught.weights, expected)


def test_a_caption_that_does_not_end_earns_nothing():
    loss = reading()
    whole, cut = (loss.reward(tokens("a red circle is here", end=end), ["a"]) for end in (True, False))
    assert whole > 1 and cut == 0


def test_to_stop_before_a_doubtful_word_pays_less_than_without_an_end_in_the_reward():
    """Who knows the last word with chance p should say it when p * right + (1 - p) * wrong is more than what stopping at `on a` earns."""
    texts = {
        "a": ["A man on a horse.", "a man rides a brown horse", "a man sits on a horse"],
        "b": ["A dog with a ball.", "a dog with a red ball", "dog with ball"],
        "c": ["two men with a dog", "Two men.", "men on a bench"],
    }
    captions = ["a man on a", "a man on a bench", "a man on a horse"]
    loss, vocabulary = SelfCritical(), Vocabulary.build(text for its in texts.values() for text in its)
    loss.read([Record(name, Path(name), its, "", []) for name, its in texts.items()], vocabulary)
    rows = [vocabulary.encode(text, 9)[1:] for text in captions]
    with_end = loss.reward(nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True), ["a"]).tolist()
    plain = References(list(texts.values()))
    without = plain.cider.each(plain.compare(captions, [0, 0, 0])).tolist()
    needed = [(cut - wrong) / (right - wrong) for cut, wrong, right in (with_end, without)]
    assert needed[0] < 0.6 * needed[1] and with_end[2] > with_end[0]


def test_unfinished_captions_are_pushed_away():
    """Whatever the baseline, the words of a sample that did not end get a negative weight beside one that did."""
    for settings in ({"baseline": "mean"}, {"baseline": "greedy"}):
        loss = reading(samples=2, **settings)
        said = torch.stack([tokens("a red circle is here", end=False)[0], tokens("red circle is here")[0]])
        loss.say = lambda *_, said=said: (said[None], said[None, 1:])
        taught = loss.lesson(CaptionModel(GivenFeatures(DIMS), DECODERS["gru-init-1"]()), batch(1), TURN)
        assert (taught.weights[0] < 0).all() and (taught.weights[1] >= 0).all() and taught.facts[2] == 1


def test_the_reward_is_of_raw_references_and_knows_no_unknown_words():
    """A rare word of a reference is <unk> to the model; to say <unk> must not match it, and it is never drawn."""
    loss = SelfCritical(samples=4, max_length=5)
    rare = Vocabulary.build(["red circle"] * 2 + ["red zeppelin"], min_count=2)
    loss.read([Record("a", Path("a"), ["red zeppelin"], "", []), Record("b", Path("b"), ["a circle"], "", [])], rare)
    unknown = torch.tensor([[rare.ids["red"], Vocabulary.unk, EOS], [rare.ids["red"], rare.ids["circle"], EOS]])
    said, wrong = loss.reward(unknown, ["a"])
    assert 0 < said <= wrong
    decoder = RecurrentDecoder(DIMS, len(rare), cell="gru", hidden_size=4, embedding_size=3)
    with torch.no_grad():
        decoder.words.out.bias[:4] = torch.tensor([9.0, 9.0, 0.0, 9.0])  # <pad>, <bos> and <unk> are what it likes best
    drawn, _ = loss.say(CaptionModel(GivenFeatures(DIMS), decoder), features(3), 0)
    assert {EOS, PAD, rare.ids["red"], rare.ids["circle"]} >= set(drawn.flatten().tolist())
    assert all(row[row.index(EOS) :].count(PAD) == len(row) - row.index(EOS) - 1 for row in drawn.flatten(0, 1).tolist() if EOS in row)


def test_bleu_of_a_caption_alone_is_that_of_cocos_code():
    loss = reading(cider=0.0, bleu4=1.0)
    texts = ["a red circle is here", "a blue circle is there", "two green bars"]
    got = loss.reward(tokens(*texts), list("abc"))
    plain = {i: [f"{text.lower().replace('.', '')} end" for text in its] for i, its in enumerate(TEXTS.values())}
    _, each = Bleu(4).compute_score(plain, {i: [f"{text} end"] for i, text in enumerate(texts)}, verbose=0)
    np.testing.assert_allclose(got, each[3], rtol=1e-5)
    assert got[0] == pytest.approx(1) and got[1] < 0.01


def test_a_mixture_is_the_weighted_sum_of_its_parts():
    said = tokens("a red circle is here", "red square")
    cider, bleu = (reading(**its).reward(said, ["a", "b"]) for its in ({}, {"cider": 0.0, "bleu4": 1.0}))
    torch.testing.assert_close(reading(cider=0.5, bleu4=3.0).reward(said, ["a", "b"]), 0.5 * cider + 3 * bleu)


@pytest.mark.parametrize("settings", [{"samples": 1}, {"cider": 0.0}])
def test_settings_that_teach_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SelfCritical(**settings)


@pytest.mark.parametrize("name", [name for name in DECODERS if not name.endswith("-2")])
def test_every_decoder_takes_a_step(name):
    torch.manual_seed(0)  # weights from which some sample earns something
    decoder = DECODERS[name](dropout=0.3)
    vocabulary = Vocabulary(["red", "circle", "blue", "square", "a"])
    loss = SelfCritical(samples=16, max_length=6)
    loss.read(RECORDS, vocabulary)
    model = CaptionModel(GivenFeatures(DIMS), decoder).train()
    taught = loss.lesson(model, batch(3), TURN)
    assert model.training and taught.weights.abs().max() > 0
    loss(model(features(3), taught.inputs), taught.tokens[:, 1:], taught.weights).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert any(p.grad.abs().max() > 0 for p in model.parameters())


# In the shared trainer


def deterministic(trainer):
    """Samples that depend on the image alone, those of a beam; and a reward that depends on the caption alone."""
    beam = Beam(3, 3, max_length=8)
    trainer.loss.say = lambda model, images, seed: (model.generate(images, beam).tokens.clone(), None)
    trainer.loss.reward = lambda tokens, image_ids: (tokens * torch.arange(1, tokens.shape[1] + 1)).sum(dim=1) % 7 / 3.0
    return trainer


def test_accumulation_and_processes_give_the_gradient_of_one_large_batch(train, tmp_path):
    overrides = [*ATTENTION, *SCST, "decoder.dropout=0", "trainer.clip=0"]
    trainer = deterministic(train(*overrides, run=tmp_path / "run"))
    large = next(trainer.batches.epoch(0))
    few, one = (Batch(large.images[rows], large.tokens, large.image_ids[rows]) for rows in (slice(0, 2), slice(2, 3)))
    assert len(large.image_ids) == 3 == len(set(large.image_ids))
    whole = gradient(trainer, [large])
    trainer.model.zero_grad()
    accumulated = gradient(trainer, [few, one])
    ranks = []
    for rank, mine in enumerate((few, one)):
        trainer.model.zero_grad()
        trainer.step.world = SimpleNamespace(device=torch.device("cpu"), rank=rank, size=2, sum=lambda value: value.fill_(9.0))
        ranks.append(gradient(trainer, [mine]))
    assert max(value.abs().max() for value in whole.values()) > 1e-3
    for name, value in whole.items():
        torch.testing.assert_close(accumulated[name], value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close((ranks[0][name] + ranks[1][name]) / 2, value, atol=1e-5, rtol=1e-4)


def test_two_processes_take_steps_together(drawings, tmp_path):
    torchrun(2, tmp_path / "two", drawings, *SCST, "data.batch_size=8", "trainer.max_steps=2")


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (ATTENTION, ["loss.baseline=greedy", "trainer.accumulate=2"]),
        (["encoder=resnet18", "encoder.weights=none", "decoder=gru", *SMALL, "features=on"], ["trainer.precision=bf16"]),
    ],
    ids=["attention", "cached"],
)
def test_a_run_that_is_killed_and_restarted_ends_with_the_same_weights_and_needs_its_start_no_more(train, tmp_path, model, more):
    begun = train(*model, "trainer.max_steps=2", "trainer.samples=0", run=tmp_path / "start")
    begun.fit()
    overrides = [*model, *SCST, *more, f"start={tmp_path / 'start'}", "trainer.max_steps=4", "trainer.checkpoint_every=2"]
    whole = train(*overrides, run=tmp_path / "whole")
    assert same(weights(whole), weights(begun))
    whole.fit()
    assert not same(weights(whole), weights(begun))
    for steps in (1, 3):  # before there is a checkpoint, and after one
        trainer = train(*overrides, run=tmp_path / "killed")
        kill_after(trainer, steps)
        with pytest.raises(Killed):
            trainer.fit()
    shutil.rmtree(tmp_path / "start")
    last = train(*overrides, run=tmp_path / "killed")
    assert last.fit() is not None and last.progress.step == whole.progress.step == 4
    assert same(weights(last), weights(whole)) and last.progress.metrics == whole.progress.metrics


def test_each_image_is_one_item_and_each_step_draws_anew(train):
    trainer = train(*ATTENTION, *SCST)
    images = [name for number in trainer.batches.order(0) for name in number]
    assert sorted(images) == list(range(40)) and trainer.steps_per_epoch == 14  # 40 images, three a batch of 16 captions
    drawn, draw = [], trainer.loss.say
    trainer.loss.say = lambda model, images, seed: drawn.append(seed) or draw(model, images, seed)
    first = next(trainer.batches.epoch(0))
    trainer.step([first, first], trainer.progress)
    trainer.progress.step = 1
    trainer.step([first], trainer.progress)
    assert len(set(drawn)) == 3
    trainer.progress.step = 0
    trainer.step([first], trainer.progress)
    assert drawn[3] == drawn[0]


def test_the_log_has_reward_baseline_and_the_share_that_ended(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = train(*ATTENTION, *SCST, "loss.max_length=30", "trainer=smoke", "logger=tensorboard")
    with torch.no_grad():
        trainer.model.decoder.words.out.bias[EOS] += 2
    trainer.fit()
    events = EventAccumulator(str(trainer.run / "tensorboard")).Reload()
    values = {name: events.Scalars(f"train/{name}")[0].value for name in ("reward", "baseline", "ended", "captions_per_second")}
    assert 0 < values["reward"] < 10 and values["reward"] == pytest.approx(values["baseline"], rel=1e-3) and 0.5 < values["ended"] <= 1


# Where a run begins


def test_the_start_gives_the_weights_of_its_best_checkpoint_and_its_vocabulary(finished, drawings, train):
    words = (finished / "vocabulary.json").read_text()
    trainer = train(*ATTENTION, *SCST, f"start={finished}", "data.min_count=30", "decoder.dropout=0.1")
    assert same(weights(trainer), checkpoint.load_tensors(finished / "best", "model"))
    assert (trainer.run / "vocabulary.json").read_text() == words == (finished / "vocabulary.json").read_text()
    assert len(trainer.evaluator.vocabulary) == len(trainer.model.decoder.words.vectors.weight)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["decoder=gru", *SMALL], r"decoder._target_=captioning.models.decoders.attention.*this is decoder._target_=.*RecurrentDecoder"),
        ([*ATTENTION, "decoder.hidden_size=17"], r"decoder.hidden_size=16, this is decoder.hidden_size=17"),
        ([*ATTENTION, "encoder.channels=32"], r"encoder.channels=16, this is encoder.channels=32"),
        ([*ATTENTION, "vectors=glove.txt"], r"vectors=glove.txt: the embeddings come from start="),
        ([*ATTENTION, "trainer.scheduled_sampling=0.5"], r"trainer.scheduled_sampling=0.5: this loss reads no captions"),
    ],
    ids=["decoder", "size", "encoder", "vectors", "scheduled"],
)
def test_what_does_not_fit_the_start_is_refused_with_both_names(train, finished, overrides, message):
    with pytest.raises(UserError, match=message):
        train(*SCST, *overrides, f"start={finished}")


def test_a_start_that_is_no_run_is_refused_by_its_own_key(train, tmp_path):
    with pytest.raises(UserError, match=r"^start=\S*nowhere: not a run directory"):
        train(*SCST, *ATTENTION, f"start={tmp_path / 'nowhere'}")
    with pytest.raises(UserError, match=r"^start=\S*begun: has no checkpoint yet"):
        train(*ATTENTION, run=tmp_path / "begun")
        train(*SCST, *ATTENTION, f"start={tmp_path / 'begun'}")


RESNET = ["encoder=resnet18", "encoder.weights=none", "decoder=lstm", *SMALL, "trainer.max_steps=1", "trainer.samples=0"]


def test_a_frozen_encoder_must_be_that_of_the_start_and_may_then_be_fine_tuned(train, tmp_path):
    begun = train(*RESNET, run=tmp_path / "frozen")
    begun.fit()
    with pytest.raises(UserError, match=r"start=\S*frozen: was trained with other encoder weights"):
        train(*RESNET, *SCST, f"start={tmp_path / 'frozen'}", "seed=2", run=tmp_path / "other")
    tuned = train(*RESNET, *SCST, f"start={tmp_path / 'frozen'}", "encoder.finetune=from layer4", "seed=2", run=tmp_path / "tuned")
    assert same(dict(tuned.model.encoder.state_dict()), load_file(tmp_path / "frozen" / "encoder.safetensors"))
    tuned.fit()
    with pytest.raises(UserError, match=r"start=\S*tuned: has an encoder that was trained there"):
        train(*RESNET, *SCST, f"start={tmp_path / 'tuned'}", run=tmp_path / "refrozen")
    again = train(*RESNET, *SCST, f"start={tmp_path / 'tuned'}", "encoder.finetune=all", run=tmp_path / "again")
    assert same(weights(again), weights(tuned))


def test_the_start_is_part_of_what_a_run_is(train, finished, tmp_path, capsys):
    train(*ATTENTION, *SCST)
    assert "warning: what an untrained model says earns next to nothing" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"start=None, this is start="):
        train(*ATTENTION, *SCST, f"start={finished}")
    train(*ATTENTION, *SCST, f"start={finished}", run=tmp_path / "with")
    text = capsys.readouterr().out
    assert "warning" not in text and f"starting from {finished}: epoch 0, step 2, cider " in text


def test_the_default_directory_names_the_loss_and_the_start():
    choices = {"data": "shapes", "encoder": "cnn", "decoder": "attention"}
    one, two = (default_directory(choices, ["loss=scst", f"start={root}/shapes-cnn-attention-s1"], 1) for root in ("runs", "old"))
    assert str(one).startswith("runs/shapes-cnn-attention-loss=scst-start=shapes-cnn-attention-s1-") and str(one).endswith("-s1")
    assert one != two


def test_settings_without_the_key_have_no_start(finished):
    """Run directories from before there was such a key go on."""
    config = as_dict(composed("train", [*CNN]))
    config.pop("start")
    assert Training(config | {"run": str(finished.parent / "new")}).start_from is None
