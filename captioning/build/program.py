"""How train.py and eval.py start: --help is answered at once, many runs are a sweep, everything else goes through Hydra."""

import sys
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING

from captioning.build.help import CONFIGS, help_text
from captioning.errors import UserError, plain_errors

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_program(name: str) -> None:
    """name: a config in configs/, and the job that takes it."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(help_text(name))
        return
    import hydra

    from captioning.build.compose import entry_point

    def job(config: "DictConfig") -> None:
        from captioning.build import evaluation, jobs

        with plain_errors():  # here too: what leaves a job, Hydra comments on
            {"train": jobs.train, "eval": evaluation.evaluate}[name](config)

    with entry_point(name):
        if name == "eval":
            sys.argv[1:] = with_patterns(sys.argv[1:])
        if is_sweep(sys.argv[1:]):
            from captioning.build.sweeps import sweep

            sweep(name, sys.argv[1:])
            return
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(job)()


def is_sweep(words: list[str]) -> bool:
    """Whether this command line asks for many runs. What else begins with a dash is Hydra's to answer."""
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    if not {"-m", "--multirun"} & options and "hydra.mode=MULTIRUN" not in words:
        return False
    if strange := options & {"--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--package", "-p"}:
        raise UserError(f"{min(strange)}: not together with -m; hydra.searchpath=[file://DIR] adds a folder of configs")
    return options <= {"-m", "--multirun"}


def with_patterns(words: list[str]) -> list[str]:
    """For eval.py: `run=` with a pattern or a list becomes all run directories that it means, and with more than one `-m` is understood."""
    result = []
    for word in words:
        value = word.removeprefix("run=")
        if value == word or value[:1] in "'\"$" or not set("=,*?[") & set(value):
            result.append(word)
            continue
        runs = [value] if Path(value).exists() else [run for part in value.split(",") if part for run in matching(part)]
        many = len(runs) > 1 or not Path(value).exists()
        result += (["-m"] if many and "-m" not in words else []) + ["run=" + ",".join(f"'{run}'" for run in runs)]
    return result


def matching(pattern: str) -> list[str]:
    if not set("*?[") & set(pattern):
        return [pattern]
    found = sorted(path.rstrip("/") for path in glob(pattern) if (Path(path) / "config.yaml").is_file())
    if not found:
        raise UserError(f"run={pattern}: matches no run directory")
    return found
