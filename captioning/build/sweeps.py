"""Many runs by one command: which are done already, which are left, and what became of each. One that fails stops no other."""

import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from captioning.build.compose import as_given, plain_hydra_errors
from captioning.build.help import CONFIGS
from captioning.build.members import (
    BEFORE,
    BEGUN,
    FAILED,
    FINISHED,
    JOBS,
    SIDE_BY_SIDE,
    WAITING,
    Member,
    announce,
    read_note,
    run_member,
    write,
    write_failure,
)
from captioning.build.runs import alone, default_directory
from captioning.errors import UserError


def sweep(name: str, words: list[str]) -> None:
    """Run every member that is not done. Exits with 1 if any failed; a mistake that all of them share is refused as for one run."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("-m: not under torchrun; hydra/launcher=joblib and submitit_slurm give every member a GPU")
    words = [word for word in words if not word.startswith("-")]
    own = sorted(word for word in words if not word.lstrip("+~").startswith(("hydra/", "hydra.")))
    folder = Path("runs") / "sweeps" / hashlib.sha256(repr((name, own)).encode()).hexdigest()[:8]
    with composer(name, [f"hydra.sweep.dir={folder}", *words]) as (master, member_config, launcher):
        folder = Path(master.hydra.sweep.dir)
        members = [planned(name, number, its, master, member_config) for number, its in enumerate(expanded(name, master), start=1)]
        refuse_what_all_share(members)
        refuse_two_in_one_folder(name, members)
        with alone(folder / "sweep.lock", f"{folder}: the same sweep is running in another process"):
            for member in members:
                write(member)
                if member.state == FAILED:
                    write_failure(name, member, f"{member.reason}\n")
                    announce(member)
            write_list(folder, name, own, members)
            if left := [member for member in members if member.state == WAITING]:
                launch(launcher(), left)
            members = [ended(name, member) for member in members]
            write_list(folder, name, own, members)
    report(folder, members)


# Which members there are


@contextmanager
def composer(name: str, words: list[str]) -> Iterator[tuple[DictConfig, Callable[[list[str]], DictConfig], Callable[[], Launcher]]]:
    """The sweep's own config; the config of a member, from its overrides; and the launcher, once it is needed."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), job_name=name, version_base="1.3"), plain_hydra_errors(name, words):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        master = hydra.compose_config(name, words, run_mode=RunMode.MULTIRUN)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        HydraConfig.instance().set_config(master)

        def member_config(overrides: list[str]) -> DictConfig:
            with plain_hydra_errors(name, overrides):
                return hydra.config_loader.load_sweep_config(master, overrides)

        def launcher() -> Launcher:
            return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run_member, config=master)

        yield master, member_config, launcher


def expanded(name: str, master: DictConfig) -> list[list[str]]:
    """The overrides of every member, in Hydra's order: the last key changes fastest."""
    words = [f"{key}={value}" for key, value in (master.hydra.sweeper.get("params") or {}).items()] + as_given(master.hydra.overrides.task)
    with plain_hydra_errors(name, words):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        return BasicSweeper.split_arguments(parser.parse_overrides(words), None)[0]


def planned(name: str, number: int, overrides: list[str], master: DictConfig, member_config: Callable[[list[str]], DictConfig]) -> Member:
    note = Path(master.hydra.sweep.dir) / f"{number:03}" / "outcome.json"
    try:
        config = member_config(overrides)
        HydraConfig.instance().set_config(config)
        config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        folder, is_done = JOBS[name].plan(config)
        return Member(number, overrides, folder, note, BEFORE if is_done else WAITING)
    except UserError as error:
        return Member(number, overrides, likely_folder(name, overrides, master), note, FAILED, str(error))


def likely_folder(name: str, overrides: list[str], master: DictConfig) -> Path:
    """Where the results of a member would go that has no config, or none that is allowed."""
    given = {key.lstrip("+~"): value.strip("'\"").replace("\\", "") for key, _, value in (word.partition("=") for word in overrides)}
    if folder := given.get("out") or given.get("run"):
        return Path(re.sub(r"\$\{([\w.]+)\}", lambda key: given.get(key[1]) or str(OmegaConf.select(master, key[1])), folder))
    choices = {str(key): given.get(str(key), str(value)) for key, value in master.hydra.runtime.choices.items()}
    return default_directory(choices, overrides, int(given.get("seed") or master.seed))


def refuse_what_all_share(members: list[Member]) -> None:
    """One mistake in every member is one mistake, and nothing is written for it."""
    reasons = {member.reason for member in members}
    if len(reasons) == 1 and "" not in reasons:
        raise UserError(members[0].reason)


def refuse_two_in_one_folder(name: str, members: list[Member]) -> None:
    first: dict[Path, Member] = {}
    for member in members:
        other = first.setdefault(member.folder.absolute(), member)
        if other is not member:
            apart = [word for word in member.overrides if word not in other.overrides]
            key, _, _ = (apart or member.overrides)[0].partition("=")
            own = f"{'run' if name == 'train' else 'out'}='{member.folder}-${{{key}}}'"
            raise UserError(f"{key}: {member.folder} would be the directory of more than one member; give each its own, as in {own}")


# Running them


def launch(launcher: Launcher, members: list[Member]) -> None:
    """Hand them to the launcher. joblib ends all its workers when one is killed: those that had begun then go on one at a time, so
    that whichever is killed again is known, and the rest go on together."""
    kind = type(launcher).__name__
    share_machine(kind, len(members))
    queue = [members]
    while queue:
        group = queue.pop(0)
        try:
            with every_job_awaited(kind):
                launcher.launch([[*member.overrides, f"hydra.sweep.subdir={member.number:03}"] for member in group], 0)
        except Exception as error:
            left = [member for member in group if read_note(member.note).state in (WAITING, BEGUN)]
            begun = [member for member in left if read_note(member.note).state == BEGUN]
            if not begun:
                raise UserError(f"hydra/launcher: {type(error).__name__}: {error}") from error
            if len(group) > 1:
                waiting = [member for member in left if member not in begun]
                queue = [*([member] for member in begun), *([waiting] if waiting else []), *queue]


def share_machine(kind: str, members: int) -> None:
    """What members side by side on one machine find in their environment: a part of its cores each, and all its GPUs to choose from."""
    if kind not in SIDE_BY_SIDE:
        return
    if kind == "LocalLauncher":  # joblib does this itself
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // members)))
    import torch

    if "CUDA_VISIBLE_DEVICES" not in os.environ and torch.cuda.device_count() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(torch.cuda.device_count())))


@contextmanager
def every_job_awaited(kind: str) -> Iterator[None]:
    """submitit's launcher waits for one job after the other and would leave at the first that was killed."""
    if kind not in ("LocalLauncher", "SlurmLauncher"):
        yield
        return
    from submitit.core.core import Job
    from submitit.core.utils import FailedJobError, UncompletedJobError

    results = Job.results

    def patient(self: Any) -> list[Any]:
        try:
            return results(self)
        except (FailedJobError, UncompletedJobError):
            return [None]

    Job.results = patient
    try:
        yield
    finally:
        Job.results = results


# What became of them


def ended(name: str, member: Member) -> Member:
    """As its process has left it; one that left nothing was killed."""
    now = read_note(member.note)
    if now.state in (BEGUN, WAITING):
        now = now._replace(state=FAILED, reason="its process ended without a word: killed, or out of memory or time")
        write_failure(name, now, f"{now.reason}\n")
        write(now)
        announce(now)
    return now


def write_list(folder: Path, name: str, own: list[str], members: list[Member]) -> None:
    """For people, and for programs that compare the members."""
    listed = [
        {"run": str(member.folder), "state": member.state, "overrides": member.overrides}
        | ({"reason": member.reason} if member.reason else {})
        for member in members
    ]
    (folder / "sweep.json").write_text(json.dumps({"program": name, "overrides": own, "members": listed}, indent=1) + "\n")


def report(folder: Path, members: list[Member]) -> None:
    states = Counter(member.state for member in members)
    failed = [member for member in members if member.state == FAILED]
    counts = f"{states[FINISHED]} finished now, {states[BEFORE]} were finished before, {len(failed)} failed"
    print(f"\n{len(members)} members: {counts}; {folder / 'sweep.json'} lists them")
    for member in failed:
        print(f"  failed: {member.folder}: {member.reason}")
    if failed:
        print("The same command again goes on with these and runs no other.", flush=True)
        sys.exit(1)
