"""Rows of the table of faults, small: runs that are killed, stopped, damaged or spoilt. And runs of two processes."""

import os
import socket
import time

import pytest
import torch
from conftest import ROOT

from benchmarks.faults import damage, guards, kills, saves, signals
from benchmarks.faults.programs import program
from benchmarks.faults.training import CNN, MODEST, PATIENCE, Program, differences, finished
from captioning.training import checkpoint


def holds(outcome):
    assert outcome.passed == outcome.count > 0, outcome.note


# One process


def test_a_run_killed_at_random_moments_is_an_uninterrupted_one_bit_for_bit(tmp_path):
    outcome = kills.kills(tmp_path, kills=5)
    assert outcome.count == 5
    holds(outcome)


def test_every_choice_meets_every_other_among_the_combinations_and_any_beginning_is_mixed():
    chosen = kills.combinations()
    kinds = {(its.decoder, its.precision, its.encoder == "fine-tuned", its.workers) for its in chosen}
    assert len(kinds) == len(chosen) == 48 and {its.encoder for its in chosen} == set(kills.ENCODERS)
    assert len({its.decoder for its in chosen[:6]}) == 4 and len({its.precision for its in chosen[:6]}) == 3


@pytest.mark.parametrize(("name", "place"), [("SIGTERM", "validation"), ("SIGUSR1", "save")])
def test_a_signal_ends_a_process_soon_and_the_same_command_goes_on_exactly(tmp_path, name, place):
    holds(signals.signals(tmp_path, (name,), (place,)))


def test_a_signal_to_a_run_and_its_data_workers_ends_it_with_a_checkpoint(tmp_path):
    holds(signals.group(tmp_path))


def test_a_second_sigint_ends_a_hanging_process_at_once(tmp_path):
    holds(signals.second(tmp_path))


def test_a_save_that_is_killed_or_refused_leaves_a_whole_checkpoint(tmp_path):
    holds(saves.saves(tmp_path, points=3, writing=1))


def test_a_damaged_checkpoint_is_found_before_it_is_used(tmp_path):
    holds(damage.damage(tmp_path, flips=7, cuts=7))


def test_a_spoilt_step_is_in_no_file_and_resume_after_it_is_exact(tmp_path):
    holds(guards.guards(tmp_path, ("lstm",), ("poisoned sample", "overflow of the scale")))


# Two processes

PAIR = [
    *(word for word in MODEST if "batch_size" not in word), *CNN, "decoder=lstm", "trainer.epochs=1", "trainer.checkpoint_every=2",
    "data.root=drawn",
]  # fmt: skip


def rank_of_two(rank, port):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def both(folder, *words):
    """As torchrun starts them, without waiting for PyTorch's imports."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return [Program(folder, [*PAIR, "data.batch_size=8", *words], prepare=rank_of_two, of=(rank, port)) for rank in (0, 1)]


def finish_both(folder, *words):
    ended = [program.end() for program in both(folder, *words)]
    assert [its.code for its in ended] == [0, 0], ended
    return ended[0].text


def in_the_epoch(run):
    """Waits for a checkpoint of it."""
    until = time.monotonic() + PATIENCE
    while signals.at_step(run) == 0 and time.monotonic() < until:
        time.sleep(0.002)


def kill_both(folder, run, *words):
    programs = both(folder, f"run={run}", *words)
    in_the_epoch(folder / run)
    assert all(program.kill() for program in reversed(programs))
    assert 0 < signals.at_step(folder / run) < 13


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with an uninterrupted run of two processes in `whole`."""
    folder = tmp_path_factory.mktemp("two")
    finish_both(folder, "run=whole")
    return folder


def test_two_processes_killed_and_restarted_end_as_two_uninterrupted_bit_for_bit(two):
    kill_both(two, "killed")
    assert "resuming killed at epoch 1" in finish_both(two, "run=killed")
    assert differences(two / "whole", two / "killed") == []


def test_what_two_processes_began_one_ends_with_batches_twice_as_large(two):
    words = ["decoder.dropout=0", "optimizer=sgd", "logger=none"]
    finish_both(two, "run=two", *words)
    kill_both(two, "one", *words)
    text = finished(two, [*PAIR, "data.batch_size=16", *words, "run=one"])
    assert "resuming one at epoch 1" in text and "2 processes" not in text
    one, whole = (checkpoint.load_tensors(two / run / "last", "model") for run in ("one", "two"))
    assert not all(torch.equal(one[name], whole[name]) for name in one)  # it was not ended by the two
    for name in one:
        torch.testing.assert_close(one[name], whole[name], atol=1e-4, rtol=0)


def test_sigterm_to_torchrun_leaves_a_checkpoint_to_go_on_from_exactly(two):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29541", str(ROOT / "train.py")]
    stopped = program(two, [*PAIR, "data.batch_size=8", "run=stopped"], launcher)
    in_the_epoch(two / "stopped")
    stopped.terminate()
    said, errors = stopped.communicate(timeout=PATIENCE)
    assert "stopped by SIGTERM at epoch 1" in errors, said + errors
    assert 0 < signals.at_step(two / "stopped") < 13
    assert "resuming stopped at epoch 1" in finish_both(two, "run=stopped")
    assert differences(two / "whole", two / "stopped") == []
