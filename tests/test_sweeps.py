"""Many runs by one command: killed, failed, finished and run again; in one process, in joblib's and in submitit's; and searches."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import faults
import pytest
import torch
from conftest import CNN, ROOT, SMALL, TINY

from captioning.build import jobs, members, program
from captioning.build.compose import as_dict, composed, entry_point
from captioning.build.sweeps import sweep
from captioning.errors import UserError
from captioning.training import checkpoint

LSTM = ["decoder=lstm", *SMALL, "trainer.samples=0"]


@pytest.fixture
def place(tmp_path, drawings, monkeypatch):
    """Where runs/ is. A list of overrides that all tests here begin with hangs on it."""
    monkeypatch.delenv("CAPTIONING_DEBUG", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # or the last digits differ
    monkeypatch.setenv("CAPTIONING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'tests'}:{ROOT}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs.Training, "start", jobs.Training.start)  # put back afterwards
    (tmp_path / "sitecustomize.py").write_text(f"import faults\nfaults.install({str(tmp_path)!r})\n")
    return [*TINY, *LSTM, f"data.root={drawings}"]


def started(name, *words, **environment):
    """(exit code, output) of the program in a process of its own."""
    command = [sys.executable, str(ROOT / f"{name}.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=os.environ | environment)
    return done.returncode, done.stdout + done.stderr


def here(capsys, name, *words):
    """The same in this process."""
    code = 0
    try:
        sweep(name, list(words))
    except SystemExit as error:
        code = error.code
    return code, capsys.readouterr().out


def model(run):
    checkpoint.verify(Path(run) / "last")
    return checkpoint.load_tensors(Path(run) / "last", "model")


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def outcomes():
    """number of the fault -> state, of the one sweep there is."""
    (listed,) = Path("runs/sweeps").glob("*/sweep.json")
    return {Path(member["run"]).name: member["state"] for member in json.loads(listed.read_text())["members"]}


def test_a_sweep_killed_and_run_again_skips_resumes_and_retries_and_no_failure_stops_it(place, capsys):
    words = [
        "-m",
        *place,
        *CNN,
        "trainer.epochs=1",
        "trainer.checkpoint_every=4",
        "trainer.log_every=1,2,3,4,5,6,0,8",
        "run=r/${trainer.log_every}",
    ]
    Path("steps").write_text("18")  # the first has 13 steps
    code, text = started("train", *words)
    assert code == -9 and (Path("r/1/best").is_dir(), Path("r/2/last").is_dir(), Path("r/3").exists()) == (True, True, False), text

    faults.install(".")
    code, text = here(capsys, "train", *words)
    assert code == 1 and "8 members: 2 finished now, 1 were finished before, 5 failed" in text
    assert "resuming r/2 at epoch 1, step 4" in text and "run r/1 on" not in text
    assert same(model("r/1"), model("r/2"))  # they differ in log_every alone
    reasons = {name: Path(f"r/{name}/failed.txt").read_text() for name in (3, 4, 5, 6, 0)}
    assert reasons[3].startswith("Traceback") and "ValueError: something broke" in reasons[3]
    assert reasons[4] == "decoder.size=3: a mistake of the user's\n" and "SystemExit: 3" in reasons[5]
    assert "OutOfMemoryError" in reasons[6] and reasons[0].startswith("trainer.log_every=0: ") and reasons[0].count("\n") == 1
    assert "[3] r/3 failed: ValueError: something broke\n" in text and text.count("  failed: r/") == 5
    assert outcomes() == {"1": "finished before", "2": "finished", "8": "finished"} | dict.fromkeys("34560", "failed")

    Path("mended").touch()
    code, text = here(capsys, "train", *words)
    assert code == 1 and "8 members: 4 finished now, 3 were finished before, 1 failed" in text
    assert [path.parent.name for path in Path("r").glob("*/failed.txt")] == ["0"]
    assert all(same(model("r/1"), model(f"r/{name}")) for name in (3, 4, 5, 6))


def test_a_finished_sweep_is_over_at_once_without_the_data(place, capsys, monkeypatch):
    from captioning.data.settings import Data

    words = ["-m", *place, *CNN, "trainer=smoke", "seed=1,2", "run=r/${seed}"]
    assert here(capsys, "train", *words)[0] == 0
    monkeypatch.setattr(Data, "read", lambda *splits: pytest.fail("the data was read"))
    code, text = here(capsys, "train", *words)
    assert code == 0 and "2 members: 0 finished now, 2 were finished before, 0 failed" in text
    monkeypatch.setattr(sys, "argv", ["train.py", *place, *CNN, "trainer=smoke", "run=r/1"])
    program.run_program("train")
    assert "r/1 is finished, at epoch 0, step 2. To go on, raise trainer.max_steps" in capsys.readouterr().out


def test_an_interrupt_ends_a_sweep(place, monkeypatch):
    begun = []

    def interrupted(config):
        begun.append(config.seed)
        raise KeyboardInterrupt

    monkeypatch.setitem(members.JOBS, "train", members.JOBS["train"]._replace(run=interrupted))
    with pytest.raises(KeyboardInterrupt):
        sweep("train", ["-m", *place, "seed=1,2"])
    assert begun == [1]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["decodr=lstm,gru"], ["decodr", "Did you mean decoder"]),
        (["seed=1,2", "decoder.dropout=2"], ["decoder.dropout=2", "less than 1"]),
        (["trainer.epochs=1,2"], ["trainer.epochs", "more than one member", "run='runs/", "${trainer.epochs}'"]),
        (["seed=1,2", "hydra/launcher=joblob"], ["hydra/launcher=joblob", "Did you mean joblib"]),
        (["seed=1,2", "hparams_search=optuna"], ["hparams_search", "without -m"]),
        (["seed=interval(1,2)"], ["INTERVAL"]),
    ],
)
def test_a_mistake_that_all_members_share_is_refused_before_anything_is_written(tmp_path, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refusal:
        sweep("train", ["-m", *words])
    assert all(part in str(refusal.value) for part in parts) and not list(tmp_path.iterdir())


def test_a_launcher_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    from hydra.core.config_store import ConfigStore

    composed("train", [])  # the launchers have entered their names
    for name in ("joblib", "submitit_slurm"):
        monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{name}.yaml")
        with pytest.raises(UserError, match=rf'hydra/launcher={name}: .*pip install "captioning\[sweep\]"'):
            sweep("train", ["-m", "seed=1,2", f"hydra/launcher={name}"])


def test_under_joblib_a_killed_worker_takes_nobody_along_and_features_gpus_and_cores_are_shared(place, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    words = ["encoder=resnet18", "encoder.weights=none", "trainer=smoke", "trainer.log_every=7,8", "run=r/${trainer.log_every}"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    code, text = started("train", "-m", *place, *words, *launcher, CUDA_VISIBLE_DEVICES="7,8")
    assert code == 1 and outcomes() == {"7": "failed", "8": "finished"}, text
    assert text.count("extracting the features of") == 2  # of training and of validation, whoever comes first
    assert "GPU 7\n" in text and "GPU 8\n" in text
    assert f"THREADS {max(1, os.cpu_count() // 2)}\n" in text
    assert "killed" in Path("r/7/failed.txt").read_text()


def test_under_submitit_a_job_told_to_end_keeps_a_checkpoint_and_is_requeued(place):
    """As Slurm does with SIGUSR2 before the time is over; submitit begins the job again, and it goes on."""
    words = [*place, *CNN, "run=r/${seed}", "trainer.epochs=2", "hydra/launcher=submitit_local"]
    Path("steps").write_text("16 SIGUSR2")
    code, output = started("train", "-m", *words, "seed=1,2")
    assert code == 0 and "2 finished now, 0 were finished before, 0 failed" in output, output
    logs = "".join(path.read_text() for path in Path("runs/sweeps").glob("*/.submitit/*/*_log.*"))
    (seed,) = re.findall(r"resuming r/(\d) at epoch 2, step 1[67]", logs)
    code, output = started("train", *words[:-1], f"seed={seed}", "run=whole")
    assert code == 0 and same(model("whole"), model(f"r/{seed}")), output


def test_under_submitit_a_killed_job_takes_nobody_along(place):
    words = [*CNN, "trainer=smoke", "trainer.log_every=7,8", "run=r/${trainer.log_every}", "hydra/launcher=submitit_local"]
    code, text = started("train", "-m", *place, *words)
    assert code == 1 and outcomes() == {"7": "failed", "8": "finished"}, text
    assert "killed" in Path("r/7/failed.txt").read_text() and not Path("r/8/failed.txt").exists()
    assert list(Path("runs/sweeps").glob("*/.submitit/*"))


def test_a_process_takes_the_lowest_gpu_that_is_free_and_keeps_it(tmp_path, monkeypatch):
    from filelock import FileLock

    monkeypatch.setattr(members, "SEATS", [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    with FileLock(tmp_path / "seat-0.lock"):
        members.take_gpu(tmp_path)
        members.take_gpu(tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"


def test_two_processes_in_one_run_directory_are_refused(place, monkeypatch):
    from captioning.build.runs import alone

    with alone(Path("r/training.lock"), "") as _, pytest.raises(UserError, match="run=r: another process is training there"):
        monkeypatch.setattr(sys, "argv", ["train.py", *place, *CNN, "trainer=smoke", "run=r"])
        monkeypatch.setenv("CAPTIONING_DEBUG", "1")
        program.run_program("train")


def test_eval_takes_a_pattern_skips_what_it_has_and_a_failing_run_stops_no_other(place, capsys, monkeypatch):
    here(capsys, "train", "-m", *place, *CNN, "trainer=smoke", "seed=1,2,3", "run='r/a=${seed}'")
    checkpoint_of_2 = Path("r/a=2/best/model.safetensors")
    whole = checkpoint_of_2.read_bytes()
    checkpoint_of_2.write_bytes(whole[:-5])

    def evaluated(*words):
        monkeypatch.setattr(sys, "argv", ["eval.py", *words, "show=0"])
        try:
            with entry_point("eval"):
                program.run_program("eval")
        except SystemExit as error:
            return error.code, capsys.readouterr().out
        return 0, capsys.readouterr().out

    code, text = evaluated("run=r/a=*")
    assert code == 1 and "3 members: 2 finished now, 0 were finished before, 1 failed" in text
    assert "model.safetensors" in Path("r/a=2/eval-failed.txt").read_text()
    checkpoint_of_2.write_bytes(whole)
    code, text = evaluated("run=r/a=1,r/a=2")
    assert code == 0 and "2 members: 1 finished now, 1 were finished before" in text and not Path("r/a=2/eval-failed.txt").exists()
    assert "0 finished now, 3 were" in evaluated("run=r/*")[1]
    assert "3 finished now, 0 were" in evaluated("run=r/*", "search.beam_size=2")[1]
    here(capsys, "train", "-m", *place, *CNN, "trainer=smoke", "trainer.max_steps=4", "seed=1", "run='r/a=${seed}'")
    if checkpoint.load_state(Path("r/a=1/best"))["step"] == 4:  # another best
        assert "1 finished now, 2 were" in evaluated("run=r/*", "search.beam_size=2")[1]
    assert evaluated("run=r/a=3")[0] == 0  # one directory, with the sign that Hydra would not read


SEARCH = [
    "hparams_search=optuna", "hparams_search.trials=3", "trainer.epochs=2", "trainer.monitor=loss", "trainer.checkpoint_every=5",
    "~hparams_search.pruner", "+hparams_search.pruner={_target_: optuna.pruners.ThresholdPruner, upper: 3.94}",
    "+hparams_search.space={decoder.dropout: null, trainer.log_every: {choices: [1, 2]}}",
]  # fmt: skip


def trials(name):
    import optuna

    found = optuna.load_study(study_name=name, storage=f"sqlite:///runs/{name}/study.db").trials
    return [(trial.state.name, trial.params, trial.intermediate_values, trial.value) for trial in found]


def test_a_search_that_is_killed_and_run_again_ends_as_one_that_was_not(place, capsys, monkeypatch):
    def searched(*words):
        monkeypatch.setattr(sys, "argv", ["train.py", *place, *CNN, *SEARCH, *words])
        try:
            with entry_point("train"):
                program.run_program("train")
        except SystemExit as error:
            return error.code, capsys.readouterr()
        return 0, capsys.readouterr()

    Path("steps").write_text("20")
    code, text = started("train", *place, *CNN, *SEARCH, "hparams_search.study=killed")
    assert code == -9 and [trial[0] for trial in trials("killed")][-1] == "RUNNING", text
    code, text = searched("hparams_search.study=killed")
    assert code == 0 and "resuming runs/killed/trial-" in text.out
    code, text = searched("hparams_search.study=whole")
    assert trials("killed") == trials("whole") and len(trials("whole")) == 3
    states = [trial[0] for trial in trials("whole")]
    assert {"COMPLETE", "PRUNED"} == set(states), trials("whole")
    pruned = Path(f"runs/whole/trial-{states.index('PRUNED'):03}")
    assert checkpoint.load_state(pruned / "last")["progress"]["epoch"] == 1 and (pruned / "best").is_dir()
    best = text.out.splitlines()[-1].strip()
    assert best.startswith("python train.py ") and "optimizer.lr=" in best and "hparams_search" not in best

    code, text = searched("hparams_search.study=whole", "decoder.tied=true")
    assert code == 2 and "decoder.tied=False" in text.err and "hparams_search.study=" in text.err


def test_a_range_that_is_none_is_refused_by_its_key():
    from captioning.build.hparams import check_range, override

    two = {"low": 1, "high": 2}
    for wrong in (
        {"low": 1},
        {"low": 2, "high": 1},
        {"low": 0, "high": 1, "log": True},
        {"choices": []},
        {"low": "a", "high": 1},
        two | {"choices": [1]},
        {"low": 1, "high": 5, "step": 0.5},
        {"low": 0.1, "high": 5, "step": 0},
        {"low": 0.1, "high": 5, "step": "x"},
        {"low": float("nan"), "high": 5},
        {"low": 1, "high": float("inf")},
        {"low": 1, "high": 5, "log": "yes"},
        {"choices": [["a"]]},
    ):
        with pytest.raises(UserError, match="hparams_search.space.optimizer.lr="):
            check_range("optimizer.lr", wrong)
    for right in ({"low": 1, "high": 3}, {"low": 1e-4, "high": 1, "log": True}, {"choices": ["a", None]}):
        check_range("optimizer.lr", right)
    values = [True, None, 1e-5, "from layer4", "it's", "a,b", "relu"]
    assert [as_dict(composed("train", [override("+run_name", value)]))["run_name"] for value in values] == values


def test_a_search_without_optuna_is_one_sentence(monkeypatch):
    from captioning.build import hparams

    monkeypatch.setattr(hparams.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "captioning\[sweep\]"'):
        jobs.training_settings(composed("train", ["hparams_search=optuna", "run=x"]))
