"""Laws of training: resume, gradients, what is validated and what is saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CNN, DECODERS, ROOT, SMALL, TINY, features

from captioning.build.runs import read_config
from captioning.data.dataset import ReferenceBatches
from captioning.data.vocabulary import Vocabulary
from captioning.errors import UserError
from captioning.models.decoders.base import DecoderOutput
from captioning.models.standard import Standard, sums_of
from captioning.training import checkpoint
from captioning.training.averaging import AverageWeights
from captioning.training.evaluate import measure
from captioning.training.losses import CrossEntropy, cross_entropy
from captioning.training.memory import forget_peak, peak_memory
from captioning.training.schedules import Cosine, Plateau, Schedule, StepDecay
from captioning.training.trainer import MEASURED

ATTENTION = [*SMALL, "decoder.attention_size=8"]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


class Killed(Exception):
    pass


def kill_after(trainer, steps):
    """Let the trainer die inside a step, as by a kill: nothing is saved on the way out."""
    take = trainer.step.guard.step

    def dying(*arguments):
        if trainer.progress.step >= steps:
            raise Killed
        return take(*arguments)

    trainer.step.guard.step = dying


@pytest.mark.parametrize(
    "overrides",
    [
        ["decoder=lstm", *SMALL],
        [*ATTENTION, "data.transform.zoom=0.3", "trainer.accumulate=2", "trainer.average=0.9"],
        ["decoder=gru", *SMALL, "scheduler=cosine", "trainer.scheduled_sampling=0.5", "trainer.precision=bf16"],
        ["decoder=rnn", *SMALL, "scheduler=plateau", "scheduler.patience=1", "optimizer=sgd"],
        ["encoder=resnet18", "encoder.weights=none", "decoder=lstm", *SMALL, "features=on"],
    ],
    ids=["lstm", "attention", "gru", "rnn", "cached"],
)
def test_a_run_that_is_killed_and_restarted_ends_with_the_same_weights_bit_for_bit(train, tmp_path, overrides):
    overrides = [*overrides, "trainer.epochs=2", "trainer.checkpoint_every=3", "trainer.samples=0"]
    whole = train(*overrides, run=tmp_path / "whole")
    whole.fit()
    for steps in (1, 5, 11):
        trainer = train(*overrides, run=tmp_path / "killed")
        kill_after(trainer, steps)
        with pytest.raises(Killed):
            trainer.fit()
    last = train(*overrides, run=tmp_path / "killed")
    assert last.fit() is not None
    assert last.progress.step == whole.progress.step == 2 * whole.steps_per_epoch
    assert same(weights(last), weights(whole))
    assert last.progress.metrics == whole.progress.metrics
    curve = lambda trainer: [its | {"seconds": 0} for its in trainer.progress.history]  # noqa: E731
    assert curve(last) == curve(whole) and [its["epoch"] for its in curve(last)] == list(range(1, whole.progress.epoch + 1))
    assert train(*overrides, run=tmp_path / "killed").fit() is None  # finished: nothing is trained twice


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot forget its peak")
def test_a_runs_peak_memory_is_its_own_and_not_that_of_what_the_process_did_before():
    device, mebibyte = torch.device("cpu"), 2**20
    torch.zeros(400 * mebibyte // 4)
    forget_peak(device)
    before = peak_memory(device)
    torch.ones(200 * mebibyte // 4)
    assert 150 * mebibyte < peak_memory(device) - before < 300 * mebibyte


def test_more_epochs_go_on_from_a_finished_run(train):
    train("decoder=lstm", *SMALL, "trainer.epochs=1").fit()
    trainer = train("decoder=lstm", *SMALL, "trainer.epochs=2")
    assert trainer.fit() is not None and trainer.progress.epoch == 2
    assert read_config(trainer.run)["trainer"]["epochs"] == 2  # as what it is compared with others


def gradient(trainer, groups):
    """The gradient of one step on these batches, without dropout."""
    trainer.model.eval()
    trainer.step.optimizer.step = lambda: None
    kept = {}
    trainer.step.optimizer.zero_grad = lambda set_to_none: kept.update({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
    trainer.step(groups, trainer.progress)
    return kept


def test_accumulated_batches_give_the_gradient_of_one_large_batch(train):
    from captioning.data.dataset import Batch, padded

    overrides = [
        *ATTENTION,
        "decoder.dropout=0",
        "trainer.clip=0",
        "loss.doubly_stochastic=1",
        "loss.label_smoothing=0.1",
    ]
    whole = train(*overrides)
    large = next(whole.batches.epoch(0))
    parts = [Batch(large.images[i::3], large.tokens[i::3], large.image_ids[i::3]) for i in range(3)]
    parts[0] = Batch(parts[0].images, padded([[t for t in row if t] for row in parts[0].tokens.tolist()]), parts[0].image_ids)
    a, b = gradient(whole, [large]), gradient(train(*overrides), parts)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4)


def torchrun(processes: int, run: Path, drawings: Path, *overrides: str):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        "--master_port=29517",
        "train.py",
    ]
    if processes == 1:
        command = [sys.executable, "train.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [
        *TINY,
        *CNN,
        *ATTENTION,
        f"data.root={drawings}",
        f"run={run}",
        "decoder.dropout=0",
        "trainer.epochs=1",
        "trainer.samples=0",
        *overrides,
    ]
    result = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    return checkpoint.load_tensors(run / "last", "model"), checkpoint.load_state(run / "last")["progress"]


def test_two_processes_train_as_one_with_batches_twice_as_large(drawings, tmp_path):
    one, at_one = torchrun(1, tmp_path / "one", drawings, "data.batch_size=16", "optimizer=sgd")
    two, at_two = torchrun(2, tmp_path / "two", drawings, "data.batch_size=8", "optimizer=sgd")
    assert at_one["step"] == at_two["step"] and at_one["metrics"]["loss"] == pytest.approx(at_two["metrics"]["loss"], abs=1e-4)
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-3)


def test_validation_is_free_running_and_sees_raw_references(train):
    """A model that is perfect under teacher forcing but cannot begin a caption must score nothing."""
    trainer = train("decoder=lstm", *SMALL)
    evaluator = trainer.evaluator
    raw = {record.image_id: record.captions for record in evaluator.batches.images.records}
    assert evaluator.references == raw and any("." in caption for captions in raw.values() for caption in captions)
    vocabulary = evaluator.vocabulary
    decoder = trainer.model.decoder

    def says_the_word_before_again(token, state):
        return torch.nn.functional.one_hot(token, len(vocabulary)).float() * 50, state

    decoder.step = says_the_word_before_again
    decoder.forward = lambda features, tokens: DecoderOutput(
        torch.nn.functional.one_hot(tokens.roll(-1, 1), len(vocabulary)).float() * 50, None
    )
    evaluation = evaluator(trainer.model)
    assert evaluation.metrics["loss"] < 2.5  # teacher forcing is nearly perfect, but for the last word of each row
    assert evaluation.metrics["bleu1"] < 0.2
    assert not any("<" in caption for caption in evaluation.captions.values())
    assert measure(evaluation.captions, raw).items() <= evaluation.metrics.items()


def test_an_image_named_twice_takes_no_other_images_loss(train):
    evaluator = train("decoder=lstm", *SMALL).evaluator
    model, images = train("decoder=lstm", *SMALL).model, evaluator.batches.images
    once = evaluator(model).result
    images.records = [images.records[0], *images.records]
    evaluator.batches = ReferenceBatches(images, 3, workers=0)
    twice = evaluator(model).result
    assert twice.image_ids == once.image_ids and twice.metrics == pytest.approx(once.metrics, rel=1e-5)
    assert twice.columns["loss"] == pytest.approx(once.columns["loss"], rel=1e-5) and len(set(once.columns["loss"].tolist())) > 1


def test_the_best_checkpoint_keeps_the_best_weights_not_the_latest(train):
    trainer = train("decoder=lstm", *SMALL, "trainer.epochs=3", "trainer.monitor=bleu1", "trainer.samples=0")
    values, at_best = iter([0.2, 0.5, 0.1]), {}
    evaluate = trainer.evaluator.__call__

    def graded(model, progress):
        evaluation = evaluate(model, progress)
        evaluation.metrics["bleu1"] = value = next(values)
        if value == 0.5:
            at_best.update({n: v.clone() for n, v in model.state_dict().items()})
        return evaluation

    graded.references = trainer.evaluator.references
    trainer.evaluator = graded
    trainer.fit()
    assert checkpoint.load_state(trainer.run / "best")["epoch"] == 2
    assert same(checkpoint.load_tensors(trainer.run / "best", "model"), at_best)
    assert not same(at_best, weights(trainer))


def test_a_run_without_progress_stops_early(train):
    trainer = train(
        "decoder=lstm",
        *SMALL,
        "optimizer=sgd",
        "optimizer.lr=1e-12",
        "trainer.epochs=9",
        "trainer.patience=2",
        "trainer.samples=0",
    )
    trainer.fit()
    assert trainer.progress.epoch == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_refused_by_name(train, damage):
    trainer = train("decoder=lstm", *SMALL, "trainer=smoke")
    trainer.fit()
    file = trainer.run / "last" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content if damage == "flip" else content[:-9])
    if damage == "gone":
        file.unlink()
    with pytest.raises(UserError, match=r"model.safetensors"):
        train("decoder=lstm", *SMALL, "trainer=smoke", "trainer.max_steps=4").fit()


def test_a_save_that_dies_midway_leaves_the_checkpoint_before(train, monkeypatch):
    trainer = train("decoder=lstm", *SMALL, "trainer=smoke")
    trainer.fit()
    before = weights(trainer)
    with torch.no_grad():
        next(trainer.model.decoder.parameters()).add_(1)
    for victim in ("save_file", "flush"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, victim, lambda *arguments: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                trainer.save()
        found = checkpoint.find(trainer.run / "last")
        checkpoint.verify(found)
        assert same(checkpoint.load_tensors(found, "model"), before)


def test_the_average_follows_the_weights_and_steps_aside():
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.data.fill_(0)
    average = AverageWeights(model, 0.9)
    model.weight.data.fill_(1)
    average.update(torch.tensor(False))
    average.update(torch.tensor(True))  # a step that was left out
    with average.in_place():
        torch.testing.assert_close(model.weight.data, torch.full((1, 2), 0.1))
    torch.testing.assert_close(model.weight.data, torch.ones(1, 2))


def test_schedules_warm_up_and_come_down():
    assert [Schedule(warmup=4).factor(step, 100, 10) for step in (0, 1, 3, 50)] == [0.25, 0.5, 1.0, 1.0]
    cosine = Cosine(warmup=10, floor=0.1)
    assert (
        cosine.factor(10, 110, 10) == 1.0
        and cosine.factor(60, 110, 10) == pytest.approx(0.55)
        and cosine.factor(110, 110, 10) == pytest.approx(0.1)
    )
    assert [StepDecay(every=2, gamma=0.5).factor(step, 99, 10) for step in (0, 19, 20, 40)] == [1, 1, 0.5, 0.25]
    plateau = Plateau(patience=2, gamma=0.5)
    factors = []
    for improved in (True, False, False, False, True, False, False):
        plateau.observe(improved)
        factors.append(plateau.factor(0, 1, 1))
    assert factors == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]


def test_the_loss_ignores_padding_and_the_penalty_wants_each_cell_once():
    decoder = DECODERS["attention-lstm"]().eval()
    short = torch.tensor([[1, 4, 5, 2]])
    long = torch.tensor([[1, 4, 5, 2, 0, 0]])
    for loss in (CrossEntropy(), CrossEntropy(label_smoothing=0.1, doubly_stochastic=1.0)):
        a, b = (loss(decoder(features(1), tokens[:, :-1]), tokens[:, 1:]) for tokens in (short, long))
        torch.testing.assert_close(a, b)
    even = DecoderOutput(torch.zeros(1, 4, 9), torch.full((1, 4, 4), 0.25))
    uneven = DecoderOutput(torch.zeros(1, 4, 9), torch.eye(4)[:1].expand(1, 4, 4).clone().index_fill(1, torch.tensor([3]), 0.25))
    targets = torch.tensor([[4, 5, 6, 2]])
    plain = CrossEntropy()(even, targets)
    torch.testing.assert_close(CrossEntropy(doubly_stochastic=1.0)(even, targets), plain)
    assert CrossEntropy(doubly_stochastic=1.0)(uneven, targets) > plain + 1


def test_scheduled_sampling_replaces_inner_words_only_and_more_with_time(train):
    trainer = train("decoder=lstm", *SMALL, "trainer.scheduled_sampling=1.0", "trainer.max_steps=100")
    batch, seen = next(trainer.batches.epoch(0)), []
    trainer.step.parallel = lambda images, inputs: seen.append(inputs) or trainer.model(images, inputs)
    for step in (0, 30, 100):
        trainer.progress.step = step
        trainer.step([batch], trainer.progress)
    assert torch.equal(seen[0], batch.tokens)  # at step 0 nothing is replaced
    changed = []
    for mixed in seen[1:]:
        kept = (batch.tokens == Vocabulary.pad) | (batch.tokens == Vocabulary.bos) | (batch.tokens == Vocabulary.eos)
        assert torch.equal(mixed[kept], batch.tokens[kept])
        changed.append((mixed != batch.tokens).float().mean().item())
    assert 0 < changed[0] < changed[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(train, precision):
    trainer = train(*ATTENTION, f"trainer.precision={precision}", "trainer=smoke")
    trainer.fit()
    assert all(torch.isfinite(value).all() for value in weights(trainer).values())


def test_late_fine_tuning_begins_at_its_epoch_with_its_own_learning_rate(train):
    trainer = train(
        "encoder=resnet18", "encoder.weights=none", "decoder=lstm", *SMALL,
        "encoder.finetune=from layer4", "encoder.finetune_epoch=1", "encoder.finetune_lr=1e-3", "trainer.epochs=2", "trainer.max_steps=14",
    )  # fmt: skip
    assert [group["lr"] for group in trainer.step.optimizer.param_groups] == [4e-4, 1e-3]
    before = {name: value.clone() for name, value in trainer.model.encoder.named_parameters()}
    steps = trainer.steps_per_epoch
    kill_after(trainer, steps)
    with pytest.raises(Killed):
        trainer.fit()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.encoder.named_parameters())
    trainer = train(
        "encoder=resnet18", "encoder.weights=none", "decoder=lstm", *SMALL,
        "encoder.finetune=from layer4", "encoder.finetune_epoch=1", "encoder.finetune_lr=1e-3", "trainer.epochs=2", "trainer.max_steps=14",
    )  # fmt: skip
    trainer.fit()
    moved = {name.split(".")[1] for name, value in trainer.model.encoder.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"layer4"}


def test_tensorboard_has_the_curves_the_samples_and_the_settings(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = train(*ATTENTION, "trainer=smoke", "logger=tensorboard")
    trainer.fit()
    events = EventAccumulator(str(trainer.run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {
        "train/loss",
        "train/lr_0",
        "train/gradient_norm",
        "train/words_per_second",
        "val/bleu4",
        "val/loss",
        "hparam/cider",
    } <= scalars
    assert events.Tags()["images"] == ["val/samples"] and "val/samples/text_summary" in events.Tags()["tensors"]
    assert not [path for path in (trainer.run / "tensorboard").iterdir() if path.is_dir()]  # hparams made no stray run


def test_a_resumed_run_shows_each_validation_once_in_tensorboard(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = ["decoder=lstm", *SMALL, "logger=tensorboard", "trainer.samples=0", "trainer.log_every=5"]
    for epochs in (1, 2, 2):  # the last is finished already
        trainer = train(*overrides, f"trainer.epochs={epochs}")
        trainer.fit()
    events = EventAccumulator(str(trainer.run / "tensorboard")).Reload()
    steps = trainer.steps_per_epoch
    assert [event.step for event in events.Scalars("val/bleu4")] == [steps, 2 * steps]
    losses = [event.value for event in events.Scalars("train/loss")]
    assert [event.step for event in events.Scalars("train/loss")] == list(range(5, 2 * steps + 1, 5))
    assert max(losses) / min(losses) < 1.2  # the mean over the steps since the last log, also where an epoch began in between


def test_a_run_directory_holds_all_that_design_asks_for(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "vocabulary.json", "env.json", "last", "best"} <= names
    assert {"format", "torch", "commit", "command"} <= json.loads((finished / "env.json").read_text()).keys()
    assert not [path for path in finished.rglob("*") if path.suffix in (".pkl", ".pickle")]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_our_cross_entropy_is_torchs_in_value_and_gradient(smoothing, kind, monkeypatch):
    monkeypatch.setattr("captioning.models.decoders.additive.NUMBERS_AT_ONCE", 30)  # several chunks
    torch.manual_seed(0)
    logits, targets = (4 * torch.randn(5, 3, 9)).to(kind).requires_grad_(), torch.randint(0, 9, (5, 3))
    results = []
    for loss in (
        cross_entropy(DecoderOutput(logits, None), targets, smoothing),
        F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=0, reduction="sum", label_smoothing=smoothing),
    ):
        (gradient,) = torch.autograd.grad(loss * 3, logits)
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(*results)


def test_captions_taken_together_share_their_image_and_give_the_same_gradient(train, tmp_path):
    apart, together = (
        train(f"data.captions_together={k}", "encoder.channels=16", *SMALL, "decoder.dropout=0", "optimizer=sgd", run=tmp_path / str(k))
        for k in (1, 5)
    )
    batch = next(together.batches.epoch(0))
    assert len(batch.images) == 3 and len(batch.tokens) == 15  # a batch of 16 captions has room for three images
    repeated = batch._replace(images=batch.images.repeat_interleave(5, dim=0))
    losses = [trainer.step([its], trainer.progress).means for trainer, its in ((together, batch), (apart, repeated))]
    torch.testing.assert_close(*losses)
    for a, b in zip(together.model.parameters(), apart.model.parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_features_are_measured_once_before_the_first_step_and_kept(train):
    trainer = train("decoder=lstm", *SMALL, "trainer.max_steps=1", "trainer.samples=0")
    standard, looks_at = trainer.model.decoder.standard, trainer.model.decoder.looks_at
    trainer.model.encoder.eval()
    with torch.no_grad():
        features = torch.cat([looks_at(trainer.model.encoder(batch.images)) for batch in trainer.batches.first(MEASURED)])
    trainer.fit()
    torch.testing.assert_close(standard.mean, features.mean(dim=0))
    scaled = standard(features)
    assert standard.measured == len(features) and scaled.std(dim=0, correction=0).max() < 1.001
    trainer.model.train()
    assert trainer.step.guard.moving() == []  # no step watches what does not move
    measured = standard.mean.clone()
    further = train("decoder=lstm", *SMALL, "trainer.max_steps=2", "trainer.samples=0")
    further.batches.first = None  # nothing is measured again
    further.fit()
    assert torch.equal(further.model.decoder.standard.mean, measured)


def test_features_of_any_scale_are_the_same_to_a_decoder():
    x = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    a, b, still = Standard(4), Standard(4), Standard(4)
    a.set(sums_of(x))
    b.set(sums_of(x[:30] * 100 + 7) + sums_of(x[30:] * 100 + 7))  # in two parts, as two processes have them
    torch.testing.assert_close(a(x), b(x * 100 + 7), atol=1e-3, rtol=1e-3)
    x[:, 3] = 0.5 + 1e-6 * x[:, 3]
    still.set(sums_of(x))
    assert still(x)[:, 3].abs().max() < 0.01  # what hardly moves is not blown up
    assert (still(x)[:, :3].std(dim=0, correction=0) - 1).abs().max() < 1e-3


def test_validations_come_as_often_as_asked_and_at_the_end(train):
    trainer = train("decoder=lstm", *SMALL, "trainer.epochs=5", "trainer.validate_every=2", "trainer.samples=0")
    trainer.fit()
    assert [point["epoch"] for point in trainer.progress.history] == [2, 4, 5]
    assert train("decoder=lstm", *SMALL, "trainer.epochs=5", "trainer.validate_every=2", "trainer.samples=0").fit() is None
