"""Rows of the table of faults, small: data workers, a long run, a sweep that is killed. And that each check can fail."""

import pytest

from benchmarks.faults import growth, sweep, workers
from benchmarks.faults.growth import Sample


def test_the_number_of_data_workers_changes_no_weight(tmp_path):
    outcome = workers.same_weights(tmp_path, (0, 2))
    assert outcome.passed == outcome.count == 2, outcome


def test_a_data_worker_that_comes_to_grief_in_a_run_is_named_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "ENDS", ("hung",))
    outcome = workers.dead_workers(tmp_path, patience=1.0)
    assert outcome.passed == outcome.count == 1, outcome


def test_a_run_leaves_no_file_open_epoch_after_epoch(tmp_path):
    samples = growth.measured(tmp_path, 12, ["data.reader.train=8", "data.reader.val=4"])
    assert len(samples) == 12 and growth.handle_growth(samples[4:]) <= 0, samples


@pytest.mark.parametrize(("each", "share"), [(0, 0.0), (10_000, 0.01), (30_000, 0.03)])
def test_growth_is_by_100_epochs(each, share):
    samples = [Sample(100_000_000 + each * 100 * epoch // 100, 6 + (epoch % 5 == 0)) for epoch in range(200)]
    assert growth.memory_growth(samples) == pytest.approx(share, rel=0.01) and growth.handle_growth(samples) == 0
    assert growth.handle_growth([Sample(1, 6 + epoch // 50) for epoch in range(200)]) == 3


def test_a_sweep_with_failures_killed_and_restarted_repeats_nothing(tmp_path):
    outcome = sweep.sweep(tmp_path, members=4, failing=1)
    assert outcome.passed == outcome.count == 1, outcome
