"""A search over settings with optuna: each trial is an ordinary run, pruned by its validation metric; killed, the search goes on."""

import importlib.util
import math
import os
import re
import shlex
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from captioning.build.compose import as_dict, composed
from captioning.build.schema import check
from captioning.errors import Requeued, UserError
from captioning.kinds import Count, Whole

if TYPE_CHECKING:
    import optuna

    from captioning.training.settings import Progress, Settings


@dataclass(frozen=True)
class Search:
    """
    sampler: from a seed to a sampler; one is made for each trial, so that a search that was killed goes on as if it had not been.
    space: from the key of an override to its range.
    """

    trials: Count
    study: str | None
    storage: str | None
    seed: Whole
    sampler: Any
    pruner: Any
    space: dict[str, dict[str, Any] | None]


def need_optuna() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UserError('hparams_search: optuna is not installed; pip install "captioning[sweep]"')


def run_search(node: dict[str, Any], base: dict[str, Any], overrides: list[str]) -> None:
    """Go on with the study until it has its trials. base: the settings without a trial's own. Exits with 1 if a trial failed."""
    import optuna

    from captioning.build.jobs import Training
    from captioning.build.members import free_memory
    from captioning.build.objects import make
    from captioning.build.runs import alone, default_directory, flat
    from captioning.randomness import seed_for

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("hparams_search: not under torchrun; a search trains one run after the other in one process")
    if named := next((word for word in overrides if word.startswith("run=")), None):
        raise UserError(f"{named}: a search names its runs itself; hparams_search.study=NAME names their folder below runs/")
    search: Search = make("hparams_search", node)
    given = [word for word in overrides if not word.lstrip("+~").startswith("hparams_search")]
    space = {key: its for key, its in search.space.items() if its is not None}
    for key, its in space.items():
        check_range(key, its)
    if not space:
        raise UserError("hparams_search.space: is empty; give it a range, as in optimizer.lr: {low: 1e-4, high: 1e-2, log: true}")
    choices = {key: str(value) for key, value in HydraConfig.get().runtime.choices.items()}
    folder = Path("runs") / (search.study or f"search-{default_directory(choices, given, base['seed']).name}")
    monitor = Training(base | {"run": str(folder / "trial")}).settings.monitor  # a mistake shows before anything is written
    with alone(folder / "study.lock", f"{folder}: another process is at this search"):
        study = optuna.create_study(
            study_name=folder.name,
            storage=search.storage or f"sqlite:///{folder / 'study.db'}",
            direction="minimize" if monitor == "loss" else "maximize",
            pruner=search.pruner,
            load_if_exists=True,
        )
        refuse_another_search(study, flat(base | {"space": space}))
        failed = 0
        for trial in due(study, search, space, lambda number: search.sampler(seed=seed_for(search.seed, "trial", number) % 2**32)):
            failed += not attempt(study, trial, folder / f"trial-{trial.number:03}", given)
            free_memory()
        report(study, folder, given)
    if failed:
        sys.exit(1)


def due(study: "optuna.Study", search: Search, space: dict[str, Any], sampler: Callable[[int], Any]) -> "Iterator[optuna.Trial]":
    """First what was interrupted, as it was; then new ones. A trial that failed in an earlier start does not count."""
    import optuna
    from optuna.trial import TrialState

    for begun in study.get_trials(states=(TrialState.RUNNING,)):  # nobody else is at it: this process has the lock
        study.sampler = sampler(begun.number)
        trial = optuna.Trial(study, begun._trial_id)
        yield drawn(trial, space)
    whole = len(study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED)))
    for _ in range(search.trials - whole):
        study.sampler = sampler(len(study.trials))
        yield drawn(study.ask(), space)


def attempt(study: "optuna.Study", trial: "optuna.Trial", run: Path, given: list[str]) -> bool:
    """Train one trial, from where it was. Returns whether it came to an end of its own."""
    from optuna.trial import TrialState

    from captioning.build.jobs import Training
    from captioning.build.members import FAILURE
    from captioning.build.runs import ending

    words = [override(key, value) for key, value in trial.params.items()]
    print(f"\ntrial {trial.number}: {' '.join(words)}", flush=True)
    is_pruned = False

    def gives_up(at: "Progress") -> bool:
        nonlocal is_pruned
        tell_epoch(trial, training.settings, at)
        is_pruned = trial.should_prune()
        return is_pruned

    try:
        settings = as_dict(composed("train", [*given, *words, override("run", str(run))]))
        settings.pop("hparams_search", None)
        check(settings)
        training = Training(settings, gives_up)
        at, over = ending(run, training.settings)
        is_validated = bool(at.metrics) and not at.batch and not at.is_due
        if not (is_validated and gives_up(at)):  # killed then: the study may not have heard of it
            training.start()
            at, over = ending(run, training.settings)
        if at.best is None or not math.isfinite(at.best):
            raise UserError(f"trainer.monitor={training.settings.monitor}: is {at.best}")
    except (KeyboardInterrupt, Requeued):
        raise
    except BaseException as error:
        is_plain = isinstance(error, UserError)
        reason = str(error) if is_plain else f"{type(error).__name__}: {error}"
        run.mkdir(parents=True, exist_ok=True)
        (run / FAILURE["train"]).write_text(f"{reason}\n" if is_plain else traceback.format_exc())
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
        print(f"trial {trial.number} failed: {reason}", flush=True)
        return False
    if is_pruned and not over:
        study.tell(trial, state=TrialState.PRUNED)
        print(f"trial {trial.number} is pruned after epoch {at.epoch}: {training.settings.monitor} {at.best:.4f}", flush=True)
    else:
        study.tell(trial, at.best)
    return True


# What a trial is


def check_range(key: str, its: dict[str, Any]) -> None:
    """Raises UserError for what is not {low, high} with log or step, or {choices}."""
    keys, here = set(its), f"hparams_search.space.{key}={its}"
    if keys == {"choices"} and isinstance(its["choices"], list) and its["choices"]:
        if all(value is None or isinstance(value, bool | int | float | str) for value in its["choices"]):
            return
        raise UserError(f"{here}: choices must be plain words or numbers")
    if not {"low", "high"} <= keys <= {"low", "high", "log", "step"}:
        raise UserError(f"{here}: must be {{low, high}} with log or step, or {{choices}} with a list")
    ends = [its["low"], its["high"]]
    if not all(is_number(end) for end in ends) or ends[0] > ends[1]:
        raise UserError(f"{here}: low and high must be numbers, low the smaller one")
    if its.get("log") not in (None, True, False) or (its.get("log") and ("step" in its or its["low"] <= 0)):
        raise UserError(f"{here}: log is true or false, needs low above 0, and no step")
    whole = all(isinstance(end, int) for end in ends)
    if "step" in its and not (is_number(its["step"]) and its["step"] > 0 and (isinstance(its["step"], int) or not whole)):
        raise UserError(f"{here}: step must be a number above 0, and a whole one between whole numbers")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def drawn(trial: "optuna.Trial", space: dict[str, dict[str, Any]]) -> "optuna.Trial":
    """The trial with a value for every key; what it has already stays."""
    for key, its in space.items():
        if "choices" in its:
            trial.suggest_categorical(key, its["choices"])
        elif isinstance(its["low"], int) and isinstance(its["high"], int):
            trial.suggest_int(key, its["low"], its["high"], step=its.get("step", 1), log=its.get("log", False))
        else:
            trial.suggest_float(key, its["low"], its["high"], step=its.get("step"), log=its.get("log", False))
    return trial


def override(key: str, value: Any) -> str:
    """`key=value` as Hydra reads it."""
    if isinstance(value, bool) or value is None:
        return f"{key}={str(value).lower() if value is not None else 'null'}"
    if not isinstance(value, str) or re.fullmatch(r"[\w./-]+", value):
        return f"{key}={value}"
    return f"{key}='" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def tell_epoch(trial: "optuna.Trial", settings: "Settings", at: "Progress") -> None:
    with warnings.catch_warnings():  # an epoch that the study had heard of before a kill is not told twice
        warnings.simplefilter("ignore")
        trial.report(at.metrics[settings.monitor], at.epoch + bool(at.batch))


def refuse_another_search(study: "optuna.Study", settings: dict[str, Any]) -> None:
    """One study compares runs that differ in nothing but what is searched. Raises UserError naming the first setting that has changed."""
    from captioning.build.runs import MAY_CHANGE

    free = {name for name in MAY_CHANGE if not name.startswith("trainer.")}
    kept = {key: value for key, value in settings.items() if not any(key == name or key.startswith(f"{name}.") for name in free)}
    before = study.user_attrs.get("settings")
    if before is None:
        study.set_user_attr("settings", kept)
        return
    changed = sorted(key for key in before.keys() | kept.keys() if before.get(key) != kept.get(key))
    if changed:
        key = changed[0]
        this = f"this is {key}={kept.get(key)}"
        raise UserError(f"{study.study_name} was begun with {key}={before.get(key)}, {this}: give another hparams_search.study=NAME")


def report(study: "optuna.Study", folder: Path, given: list[str]) -> None:
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state for trial in trials)
    print(
        f"\n{folder}: {states[TrialState.COMPLETE]} trials complete, {states[TrialState.PRUNED]} pruned, {states[TrialState.FAIL]} failed; "
        "with a higher hparams_search.trials the same command goes on"
    )
    for trial in trials:
        if trial.state == TrialState.FAIL:
            print(f"  failed: {folder}/trial-{trial.number:03}: {trial.user_attrs.get('reason')}")
    if states[TrialState.COMPLETE]:
        best = study.best_trial
        words = [word for word in given if word.partition("=")[0] not in best.params]
        words += [override(key, value) for key, value in best.params.items()]
        print(f"best: trial {best.number}, {best.value:.4f}, in {folder}/trial-{best.number:03}; its settings:")
        print(f"  python train.py {shlex.join(words)}", flush=True)
