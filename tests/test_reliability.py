"""Laws of runs that come to grief: signals, damaged checkpoints, steps that are not finite, a frozen encoder that moves."""

import json
import os
import shutil
import signal
import threading

import pytest
import torch
from conftest import SMALL
from safetensors import SafetensorError
from test_training import ATTENTION, Killed, kill_after, same, weights

from benchmarks.faults.training import curve
from captioning.build.runs import load_run
from captioning.errors import Stopped, UserError, plain_errors
from captioning.training import checkpoint
from captioning.training.distributed import World
from captioning.training.evaluate import warning_of_collapse
from captioning.training.guard import IN_A_ROW
from captioning.training.settings import Progress
from captioning.training.trainer import Asked

LSTM = ["decoder=lstm", *SMALL, "trainer.samples=0"]
EVERY = {"lstm": LSTM, "gru": ["decoder=gru", *SMALL, "trainer.samples=0"], "attention": [*ATTENTION, "trainer.samples=0"]}


# Resume


@pytest.mark.parametrize("decoder", EVERY)
def test_the_logged_curve_of_a_killed_run_is_that_of_an_uninterrupted_one(train, tmp_path, decoder):
    """No step is missing or repeated, and every mean is over the same steps, wherever the kill fell between two logs or checkpoints."""
    overrides = [*EVERY[decoder], "logger=tensorboard", "trainer.epochs=2", "trainer.checkpoint_every=3", "trainer.log_every=4"]
    train(*overrides, run=tmp_path / "whole").fit()
    for steps in (2, 4, 8, 15):
        trainer = train(*overrides, run=tmp_path / "killed")
        kill_after(trainer, steps)
        with pytest.raises(Killed):
            trainer.fit()
        trainer.logger.writer.flush()  # its thread might have
    train(*overrides, run=tmp_path / "killed").fit()
    whole, killed = curve(tmp_path / "whole"), curve(tmp_path / "killed")
    assert killed == whole and len(whole["train/loss"]) == 2 * 13 // 4 and len(whole["val/cider"]) == 2


def test_a_validation_that_was_logged_but_not_kept_is_logged_once(train, tmp_path):
    overrides = [*LSTM, "logger=tensorboard", "trainer.epochs=1", "trainer.log_every=1"]
    train(*overrides, run=tmp_path / "whole").fit()
    trainer = train(*overrides, run=tmp_path / "killed")
    stop_in_validation(trainer)
    with pytest.raises(Stopped):
        trainer.fit()
    trainer = train(*overrides, run=tmp_path / "killed")
    trainer.save = lambda: (_ for _ in ()).throw(Killed())  # the validation's figures are logged already
    with pytest.raises(Killed):
        trainer.fit()
    trainer.logger.writer.flush()
    train(*overrides, run=tmp_path / "killed").fit()
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def test_another_number_of_processes_must_see_as_many_captions_a_step(train, tmp_path, monkeypatch):
    overrides = [*LSTM, "trainer.epochs=1", "trainer.checkpoint_every=2"]
    trainer = train(*overrides)
    kill_after(trainer, 4)
    with pytest.raises(Killed):
        trainer.fit()
    with pytest.raises(UserError, match=r"16 captions a step, this is data.batch_size=8 on 1 process: data.batch_size=16 does it"):
        train(*overrides, "data.batch_size=8")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"data.batch_size=16 on 2 processes: data.batch_size=8 does it"):
        train(*overrides)


# Signals


def stop_in_validation(trainer, number=signal.SIGTERM):
    evaluate = trainer.evaluator

    def signalled(model, advance):
        os.kill(os.getpid(), number)
        return evaluate(model, advance)

    signalled.references = evaluate.references
    trainer.evaluator = signalled


def stop_in_step(trainer, number, at=4):
    turn = trainer.step.loss.lesson

    def signalled(*arguments):
        if trainer.progress.step == at:
            os.kill(os.getpid(), number)
        return turn(*arguments)

    object.__setattr__(trainer.step.loss, "lesson", signalled)


def stop_in_save(number):
    save, saved = checkpoint.save, []

    def signalled(folder, **more):
        if folder.name == "last" and not saved:
            saved.append(True)
            os.kill(os.getpid(), number)
        save(folder, **more)

    return signalled


@pytest.fixture(scope="module")
def whole_weights():
    return {}


@pytest.mark.parametrize("place", ["step", "validation", "save"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_leaves_a_checkpoint_and_the_run_goes_on_exactly(train, tmp_path, monkeypatch, whole_weights, name, place):
    number = signal.Signals[name]
    overrides = [*LSTM, "trainer.epochs=2", "trainer.average=0.9", "trainer.checkpoint_every=6"]
    if not whole_weights:
        trainer = train(*overrides, run=tmp_path / "whole")
        trainer.fit()
        whole_weights.update(weights(trainer))
    trainer = train(*overrides)
    before = {its: signal.getsignal(its) for its in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with monkeypatch.context() as patch:
        if place == "step":
            stop_in_step(trainer, number)
        elif place == "validation":
            stop_in_validation(trainer, number)
        else:
            patch.setattr(checkpoint, "save", stop_in_save(number))
        with pytest.raises(Stopped, match=f"stopped by {name} at epoch 1"):
            trainer.fit()
    assert {its: signal.getsignal(its) for its in before} == before
    state = checkpoint.load_state(trainer.run / "last")["progress"]
    assert state["step"] == {"step": 5, "validation": trainer.steps_per_epoch, "save": 7}[place]
    assert state["is_due"] == (place == "validation")
    last = train(*overrides)
    last.fit()
    assert same(weights(last), whole_weights) and last.progress.epoch == 2 and len(last.progress.history) == 2


def test_whoever_listened_before_is_asked_after_the_checkpoint_and_may_let_the_run_go_on(train):
    heard = []
    trainer = train(*LSTM, "trainer.epochs=1")
    stop_in_step(trainer, signal.SIGUSR2)
    before = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append((number, (trainer.run / "last").is_dir())))
    try:
        assert trainer.fit() is not None
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [(signal.SIGUSR2, True)] and trainer.progress.epoch == 1


def test_a_signal_in_the_last_save_ends_the_sweep_that_the_run_is_one_of(train, monkeypatch):
    trainer = train(*LSTM, "trainer=smoke")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop_in_save(signal.SIGTERM))
        with pytest.raises(Stopped, match="stopped by SIGTERM at epoch 1, step 2"):
            trainer.fit()
    assert train(*LSTM, "trainer=smoke").fit() is None  # it was finished all the same


def test_of_two_signals_both_are_obeyed(train):
    """Slurm sends SIGTERM with the signal that submitit requeues by, and submitit lets SIGTERM pass."""
    heard, numbers = [], (signal.SIGTERM, signal.SIGUSR2)
    trainer = train(*LSTM, "trainer=smoke")
    for number in numbers:
        stop_in_step(trainer, number, at=0)
    before = {number: signal.signal(number, lambda its, frame: heard.append(its)) for number in numbers}
    try:
        assert trainer.fit() is not None
    finally:
        for number in numbers:
            signal.signal(number, before[number])
    assert sorted(heard) == sorted(numbers)


def test_sigterm_where_there_is_nothing_to_keep_ends_a_program_as_ctrl_c_does(capsys):
    with pytest.raises(SystemExit) as exit, plain_errors():
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit.value.code == 143 and capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_ranks_validate_together_and_none_leaves_the_others(train):
    trainer = train(*LSTM, "trainer=smoke")
    trainer.signals.received = [signal.SIGTERM]
    with pytest.raises(Asked):
        trainer.unless_asked(lambda images: None)(1)
    trainer.world = World(trainer.world.device, size=2)
    trainer.unless_asked(lambda images: None)(1)


def test_a_second_sigint_is_the_systems_own(train):
    trainer = train(*LSTM, "trainer.epochs=1")
    take, second = trainer.step.guard.step, []

    def impatient(*arguments):
        if not second:
            os.kill(os.getpid(), signal.SIGINT)
            second.append(signal.getsignal(signal.SIGINT))
        return take(*arguments)

    trainer.step.guard.step = impatient
    with pytest.raises(Stopped):
        trainer.fit()
    assert second == [signal.SIG_DFL]


def test_outside_the_main_thread_a_run_trains_without_listening(train):
    trainer, errors = train(*LSTM, "trainer=smoke"), []
    thread = threading.Thread(target=lambda: errors.append(trainer.fit()))
    thread.start()
    thread.join()
    assert errors and errors[0] is not None


# Checkpoints


def test_a_checkpoint_is_written_when_its_minutes_are_over(train, monkeypatch):
    trainer = train(*LSTM, "trainer.epochs=1", "trainer.checkpoint_minutes=0.0001")
    steps, save = [], trainer.keeper.save
    monkeypatch.setattr(trainer.keeper, "save", lambda at: steps.append(at.step) or save(at))
    trainer.fit()
    assert len(steps) > 3 and not train(*LSTM, "trainer.checkpoint_minutes=0").keeper.is_time(Progress(step=7))


@pytest.fixture
def two(train):
    """A run with two checkpoints, `last` and the one before it; and how to go on from it."""
    overrides = [*LSTM, "trainer.epochs=1", "trainer.checkpoint_every=3"]
    trainer = train(*overrides)
    kill_after(trainer, 7)
    with pytest.raises(Killed):
        trainer.fit()
    assert [checkpoint.load_state(trainer.run / name)["progress"]["step"] for name in ("last", "last.before")] == [6, 3]
    return trainer.run, lambda: train(*overrides)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
def test_a_damaged_last_falls_back_to_the_one_before_and_says_so(two, file, capsys, tmp_path):
    run, again = two
    content = bytearray((run / "last" / file).read_bytes())
    content[len(content) // 2] ^= 4
    (run / "last" / file).write_bytes(content)
    trainer = again()
    trainer.fit()
    told = capsys.readouterr().out.split("warning: ")[1].split("going on from the one before it")[0]
    assert "last: " in told and (file in told or file == "manifest.json")
    assert len(trainer.progress.history) == 1 and sorted(path.name for path in run.glob("last*")) == ["last", "last.before"]
    checkpoint.verify(run / "last.before", "model")


def test_after_a_fallback_too_there_is_a_whole_checkpoint_at_every_moment(two):
    run, again = two
    (run / "last" / "model.safetensors").write_bytes(b"")
    trainer = again()
    trainer.keeper.resume()
    assert checkpoint.newest_whole(run / "last")[0] == run / "last.before" and not (run / "last").exists()


def test_a_best_checkpoint_that_cannot_be_read_is_refused_and_no_other_taken(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "copy")
    (run / "best" / "manifest.json").unlink()
    with pytest.raises(UserError, match="best: not a whole checkpoint"):
        load_run(run, torch.device("cpu"))


def test_a_disk_too_full_for_the_frozen_encoder_is_one_sentence(train, monkeypatch):
    def full(*arguments):
        raise SafetensorError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="cannot be written .*no space left"):
        train("encoder=resnet18", "encoder.weights=none", "features=off", *LSTM)


def test_where_both_are_damaged_the_run_is_refused(two):
    run, again = two
    for name in ("last", "last.before"):
        (run / name / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"last: damaged since it was written: model.safetensors"):
        again().fit()


def test_a_whole_checkpoint_of_something_else_is_refused_with_both_names(two, tmp_path):
    run, again = two
    state = json.loads((run / "last" / "state.json").read_text())
    others = {"vocabulary": "9 words, abc", "encoder.channels": 99, "decoder.cell": "gru", "format": 2, "encoder weights": "x"}
    for key, other in others.items():
        (run / "last" / "state.json").write_text(json.dumps(state | {"of": state["of"] | {key: other}}, indent=1))
        sign(run / "last")
        with pytest.raises(UserError, match=f"last: is a checkpoint of {key}={other}, this run is of {key}={state['of'].get(key)}"):
            again().fit()


def sign(folder):
    files = sorted(file for file in folder.iterdir() if file.name != "manifest.json")
    (folder / "manifest.json").write_text(checkpoint.manifest_text({file.name: checkpoint.sha256(file) for file in files}))


def test_a_checkpoints_files_have_the_permissions_of_new_files(two):
    modes = {path.stat().st_mode & 0o777 for path in two[0].rglob("*.*") if path.is_file()}
    (two[0] / "new").touch()
    assert modes == {(two[0] / "new").stat().st_mode & 0o777}


def test_a_pickle_under_a_checkpoints_name_is_never_opened(two, tmp_path, monkeypatch):
    run, again = two
    proof = tmp_path / "proof"

    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {proof}",)

    for name in ("model.safetensors", "optimizer.safetensors"):
        folder = shutil.copytree(run / "last", tmp_path / "copy")
        torch.save({"state": Bomb()}, run / "last" / name)
        sign(run / "last")
        with pytest.raises(UserError, match=f"{name}: holds no tensors"):
            again().fit()
        shutil.rmtree(run / "last")
        folder.rename(run / "last")
    assert not proof.exists()


def test_the_optimizers_memory_comes_back_in_its_parameters_order(train, tmp_path):
    """safetensors knows no strides, and a fused kernel walks through memory: convolutions lie channels last."""
    trainer = train(*LSTM, "trainer=smoke")
    trainer.fit()
    again = train(*LSTM, "trainer=smoke", "trainer.max_steps=3")
    again.keeper.resume()
    pairs = zip(trainer.step.optimizer.state.items(), again.step.optimizer.state.items(), strict=True)
    for (_, before), (_, after) in pairs:
        for name in before:
            assert torch.equal(before[name], after[name]) and before[name].stride() == after[name].stride()
    assert any(not parameter.is_contiguous() for parameter in trainer.model.parameters())


# Steps that are not finite


def poisoned(trainer, steps, how):
    """So many steps are spoilt, from the third on."""
    loss, register = trainer.step.loss, []
    spoilt = range(2, 2 + steps)

    class Spoilt(type(loss)):
        def __call__(self, output, targets, weights=None):
            value = super().__call__(output, targets, weights)
            if trainer.progress.step not in spoilt:
                return value
            register.append(trainer.progress.step)
            if how == "loss":
                return value * float("nan")
            value.register_hook(lambda gradient: gradient * float("inf"))  # the loss itself stays finite
            return value

    object.__setattr__(loss, "__class__", Spoilt)  # it is frozen
    return register


@pytest.mark.parametrize("decoder", EVERY)
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adam-plain"])
@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_not_finite_never_reaches_the_weights(train, capsys, how, optimizer, decoder):
    chosen = ["optimizer.fused=false"] if optimizer == "adam-plain" else [f"optimizer={optimizer}"]
    trainer = train(*EVERY[decoder], *chosen, "trainer.max_steps=5", "trainer.average=0.9")
    spoilt, kept, averages, take = poisoned(trainer, 2, how), [], [], trainer.step.guard.step

    def watched(*arguments):
        before, average = weights(trainer), {name: value.clone() for name, value in trainer.step.average.average.items()}
        averages.append(average)
        is_bad = take(*arguments)
        kept.append((bool(is_bad), same(weights(trainer), before)))
        return is_bad

    trainer.step.guard.step = watched
    trainer.fit()
    assert same(averages[2], averages[3]) and same(averages[3], averages[4]) and not same(averages[1], averages[2])
    assert spoilt == [2, 3] and kept == [(False, False)] * 2 + [(True, True)] * 2 + [(False, False)]
    assert all(value.isfinite().all() for memory in trainer.step.optimizer.state.values() for value in memory.values() if value is not None)
    assert all(value.isfinite().all() for value in (*weights(trainer).values(), *trainer.step.average.average.values()))
    assert trainer.progress.skipped == 2 and trainer.progress.skipped_in_a_row == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: step")]
    assert len(lines) == 2 and f"the {how} is not finite" in lines[0]
    batches = list(trainer.batches.epoch(0))
    assert all(name in lines[0] for name in batches[2].image_ids) and all(name in lines[1] for name in batches[3].image_ids)


def test_a_skipped_step_is_as_if_its_batch_had_not_been(train, tmp_path):
    """Also in the curve: the mean loss is over the steps that were taken."""
    trainer = train(*LSTM, "decoder.dropout=0", "trainer.max_steps=4", "trainer.log_every=4", "logger=tensorboard", "optimizer=sgd")
    poisoned(trainer, 1, "loss")
    trainer.fit()
    plain = train(*LSTM, "decoder.dropout=0", "trainer.max_steps=4", "optimizer=sgd", run=tmp_path / "plain")
    plain.measure_features()
    plain.model.train()
    batches, losses = list(plain.batches.epoch(0)), []
    for number in (0, 1, 3):
        plain.progress.step = number
        losses.append(plain.step([batches[number]], plain.progress).means[0])
    assert same(weights(trainer), weights(plain))
    assert curve(trainer.run)["train/loss"] == [(4, (sum(losses) / 3).item())] and curve(trainer.run)["train/skipped_steps"] == [(4, 1.0)]


@pytest.mark.parametrize("loss", ["sampling", "scst", "greedy"])
def test_a_poisoned_picture_is_found_also_where_words_are_drawn_from_it(train, capsys, loss):
    chosen = {"sampling": ["trainer.scheduled_sampling=1.0"], "scst": ["loss=scst"], "greedy": ["loss=scst", "loss.baseline=greedy"]}[loss]
    trainer = train(*LSTM, *chosen, "trainer.max_steps=9")
    batch = next(trainer.batches.epoch(0))
    batch.images[1] = float("nan")
    trainer.progress.step, before = 5, weights(trainer)
    trainer.model.train()
    taken = trainer.step([batch], trainer.progress)
    assert taken.is_bad and same(weights(trainer), before) and batch.image_ids[1] in capsys.readouterr().out


def test_one_poisoned_picture_spoils_neither_weights_nor_running_statistics(train):
    encoder = ["encoder=resnet18", "encoder.weights=none", "encoder.finetune=all", "data.batch_size=4"]
    trainer = train(*encoder, *LSTM, "trainer.max_steps=2")
    batches, before = list(trainer.batches.epoch(0))[:2], None
    batches[1].images[2, 0, 5, 5] = float("nan")
    trainer.model.train()
    for batch in batches:
        before = weights(trainer)
        taken = trainer.step([batch], trainer.progress)
    assert taken.is_bad and same(weights(trainer), before) and any("running_mean" in name for name in before)


def test_training_ends_after_five_such_steps_in_a_row_and_its_checkpoint_stays(train):
    overrides = [*LSTM, "trainer.epochs=2", "trainer.checkpoint_every=2"]
    trainer = train(*overrides)
    poisoned(trainer, 99, "gradient")
    with pytest.raises(UserError, match=f"the gradient was not finite in {IN_A_ROW} steps in a row"):
        trainer.fit()
    assert trainer.progress.step == 2 + IN_A_ROW - 1
    state = checkpoint.load_state(trainer.run / "last")["progress"]
    assert state["step"] == 6 and state["skipped"] == 4


def test_an_overflow_of_fp16s_scale_is_counted_and_no_alarm(train, capsys):
    trainer = train(*LSTM, "trainer.precision=fp16", "trainer.max_steps=8")
    trainer.step.scaler.load_state_dict(trainer.step.scaler.state_dict() | {"scale": 2.0**40})
    trainer.fit()
    assert trainer.progress.skipped >= IN_A_ROW and trainer.step.scaler.get_scale() < 2.0**40
    assert all(value.isfinite().all() for value in weights(trainer).values()) and "warning: step" not in capsys.readouterr().out


def test_a_frozen_encoder_that_moves_stops_the_run(train):
    """BatchNorm's statistics are what drifts when somebody calls train() on all modules."""
    trainer = train("encoder=resnet18", "encoder.weights=none", "features=off", *LSTM, "trainer=smoke")
    trainer.model.encoder.body.train = lambda mode=True: None
    trainer.model.encoder.train = lambda mode=True: None
    norm = next(module for module in trainer.model.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d))
    step = trainer.step.guard.step
    trainer.step.guard.step = lambda *arguments: norm.running_mean.add_(1) is None or step(*arguments)
    with pytest.raises(AssertionError, match=r"the encoder is frozen, and yet body\..*running_mean changed"):
        trainer.fit()


def test_an_alarm_tells_of_captions_that_do_not_depend_on_the_pictures():
    name = lambda captions: {str(number): caption for number, caption in enumerate(captions)}  # noqa: E731
    assert warning_of_collapse(name(["a dog"] * 3 + [f"caption {number}" for number in range(7)])).startswith("one caption is given to 30%")
    few = warning_of_collapse(name([f"caption {number % 8}" for number in range(200)]))
    assert few and few.startswith("8 distinct captions for 200 images")
    assert warning_of_collapse(name([f"caption {number % 12}" for number in range(200)])) is None and warning_of_collapse({}) is None


def test_a_validation_without_a_figure_is_never_the_best(train, monkeypatch):
    trainer = train(*LSTM, "trainer.epochs=3", "trainer.monitor=bleu1")
    values, evaluate = iter([float("nan"), 0.1, 0.05]), trainer.evaluator

    def graded(model, progress):
        evaluation = evaluate(model, progress)
        evaluation.metrics["bleu1"] = next(values)
        return evaluation

    graded.references = evaluate.references
    trainer.evaluator = graded
    trainer.fit()
    assert trainer.progress.best == 0.1 and checkpoint.load_state(trainer.run / "best")["epoch"] == 2
