"""Data workers that are killed, end, hang or lose a batch: one sentence that names them, soon, and nobody is left behind."""

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, pictures
from PIL import Image

from captioning.data import workers
from captioning.data.dataset import ImageSource, ReferenceBatches, ReferenceImages, loader
from captioning.data.records import Record
from captioning.data.transforms import Transform
from captioning.data.vocabulary import Vocabulary
from captioning.errors import UserError, WorkerFailure


class Items:
    """Each key gives itself, after what `task` does with it in the worker."""

    source = SimpleNamespace(reading="workers")

    def __init__(self, task):
        self.task = task

    def __getitems__(self, keys):
        for key in keys:
            workers.begin(f"picture-{key}.jpg")
            self.task(key)
        return keys


def on(place, act):
    return Items(lambda key: act() if key == place else None)


@pytest.fixture(autouse=True)
def nobody_left():
    yield
    assert not multiprocessing.active_children()
    assert not [thread for thread in threading.enumerate() if thread.name == "watch over data workers"]


@pytest.fixture
def patience(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.6)
    monkeypatch.setattr(workers, "LOOK", 0.1)


def failure(items, count=8, each=2):
    """What is said, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(WorkerFailure) as said:
        for _ in loader(items, [[row] for row in range(count)], each):
            pass
    assert isinstance(said.value, UserError) and "\n" not in str(said.value)
    return str(said.value), time.monotonic() - began


def itself(signum):
    return lambda: os.kill(os.getpid(), signum)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (itself(signal.SIGKILL), ["was killed (signal 9)", "want of memory: give fewer data.workers or a smaller data.batch_size"]),
        (itself(signal.SIGTERM), ["was ended by signal 15 (Terminated)"]),
        (itself(signal.SIGSEGV), ["was ended by signal 11 (Segmentation fault)"]),
        (itself(signal.SIGBUS), ["bus error", "shared memory"]),
        (lambda: os._exit(3), ["ended", "exit code 3"]),
        (sys.exit, ["exit code 0"]),
    ],
)
def test_a_worker_that_dies_is_named_with_what_it_was_at(act, words, capfd):
    said, seconds = failure(on(3, act))
    assert said.startswith("data worker 1 (pid ") and "picture-3.jpg" in said, said
    assert all(word in said for word in words), said
    assert seconds < 4 and "Traceback" not in capfd.readouterr().err


def test_a_worker_that_hangs_is_named_with_its_picture_and_killed(patience, tmp_path, monkeypatch):
    """It waits in the system, as for a network drive that is gone."""
    os.mkfifo(tmp_path / "2.jpg")
    monkeypatch.setattr(Transform, "read", lambda self, path: Image.open(BytesIO(path.read_bytes())).convert("RGB"))
    folder = pictures(tmp_path, "0.jpg", "1.jpg", "3.jpg")
    records = [Record(str(row), folder / f"{row}.jpg", ["a dog"], "captions.txt", []) for row in range(4)]
    images = ReferenceImages(records, Vocabulary.build(["a dog"], 1), 5, ImageSource(Transform(size=8)))
    began = time.monotonic()
    with pytest.raises(WorkerFailure, match=rf"data worker 0 \(pid \d+\) hangs: it has been at {tmp_path / '2.jpg'} for more than"):
        list(ReferenceBatches(images, 1, workers=2))
    assert time.monotonic() - began < 5


def test_a_slow_batch_of_quick_pictures_is_waited_for(patience):
    items = Items(lambda key: time.sleep(0.25))
    assert len(list(loader(items, [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], 2))) == 2


def test_a_stopped_worker_is_named_even_if_batches_of_its_were_ready(patience):
    mine = loader(Items(lambda key: None), [[torch.zeros(9)] for _ in range(12)], 2)
    next(mine)
    time.sleep(0.3)
    victim = min(child.pid for child in multiprocessing.active_children())
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(WorkerFailure, match=rf"\(pid {victim}\) was stopped by a signal"):
        list(mine)


def slowly(key):
    for _ in range(9):  # a single sleep would be over when the process goes on
        time.sleep(0.05)


def test_a_program_that_was_itself_stopped_goes_on():
    script = (
        "import test_workers as t\nt.workers.PATIENCE, t.workers.LOOK = 1.5, 0.1\n"
        "for batch in t.loader(t.Items(t.slowly), [[n] for n in range(8)], 2): print(batch, flush=True)"
    )
    with started(script) as program:
        assert program.stdout.readline() == "[0]\n"
        time.sleep(0.2)  # the next pictures are begun
        os.killpg(program.pid, signal.SIGSTOP)
        time.sleep(2.5)
        os.killpg(program.pid, signal.SIGCONT)
        out, error = program.communicate(timeout=30)
        assert (out.count("\n"), error) == (7, "")


class Unsendable:
    def __reduce__(self):
        raise OSError("no room in the shared memory")


def test_a_batch_that_cannot_be_handed_over_is_not_waited_for(patience):
    items = Items(lambda key: None)
    items.__class__ = type("Heavy", (Items,), {"__getitems__": lambda self, keys: Unsendable()})
    assert "no batch has come" in failure(items)[0]


def test_no_memory_in_a_worker_is_one_sentence(monkeypatch, capfd):
    def greedy():
        raise MemoryError

    with pytest.raises(WorkerFailure, match=r"data worker [01] \(pid \d+\) found no more memory"):
        list(loader(on(1, greedy), [[0], [1]], 2))

    def full(tensor):
        raise RuntimeError("No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(WorkerFailure, match=r"data worker [01] \(pid \d+\) found no room in the shared memory"):
        list(loader(Items(lambda key: None), [(torch.zeros(3),)] * 3, 2))
    assert "Traceback" not in capfd.readouterr().err


def test_a_mistake_in_the_code_keeps_its_traceback():
    def wrong():
        raise ZeroDivisionError("a mistake")

    with pytest.raises(ZeroDivisionError, match="Traceback"):
        list(loader(on(1, wrong), [[0], [1]], 2))


def test_a_worker_that_dies_disturbs_nothing_but_the_wait_for_its_batch():
    """Torch would raise at any place of the parent, in the middle of a step or of a save."""
    mine = loader(Items(lambda key: None), [[key] for key in range(12)], 2)
    next(mine)
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    sum(range(100_000))
    with pytest.raises(WorkerFailure, match="was killed"):
        list(mine)


def test_workers_leave_interrupts_to_their_parent_and_have_one_thread():
    def deaf(key):
        for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), signum)
        assert torch.get_num_threads() == 1

    assert len(list(loader(Items(deaf), [[0], [1]], 2))) == 2


def test_a_loader_that_is_left_early_ends_its_workers_even_stopped_ones(monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    mine = loader(Items(lambda key: None), [[key] for key in range(12)], 1)
    next(mine)
    (child,) = multiprocessing.active_children()
    os.kill(child.pid, signal.SIGSTOP)
    mine.close()


def test_no_handles_are_left_open_loader_after_loader(patience):
    def once():
        list(loader(Items(lambda key: None), [(torch.zeros(3),)] * 6, 2))
        with suppress(WorkerFailure):
            list(loader(on(1, itself(signal.SIGKILL)), [[0], [1], [2]], 2))
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    first, later = (min(once() for _ in range(3)) for _ in range(2))  # threads of queues close some a moment later
    assert later <= first


def started(script):
    path = f"{ROOT}:{ROOT / 'tests'}"
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("act", ["t.itself(9)", "lambda: t.time.sleep(999)", "t.itself(t.signal.SIGSTOP)"])
def test_a_program_ends_with_code_2_at_once_and_leaves_no_process(act, tmp_path):
    script = (
        "import test_workers as t; from captioning.errors import plain_errors\n"
        f"t.workers.PATIENCE, t.workers.LOOK = 0.6, 0.1\nwith plain_errors(): list(t.loader(t.on(3, {act}), [[n] for n in range(8)], 2))"
    )
    with started(script) as program:
        out, error = program.communicate(timeout=40)
        assert (program.returncode, out) == (2, "") and error.startswith("error: data worker 1 (pid ") and error.count("\n") == 1, error
        with pytest.raises(ProcessLookupError):
            os.killpg(program.pid, 0)
