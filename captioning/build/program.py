"""How train.py and eval.py start: --help is answered at once, everything else goes through Hydra."""

import sys
from typing import TYPE_CHECKING

from captioning.build.help import CONFIGS, help_text
from captioning.errors import plain_errors

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
        from captioning.build import jobs

        with plain_errors():  # here too: what leaves a job, Hydra comments on
            {"train": jobs.train, "eval": jobs.evaluate}[name](config)

    with entry_point(name):
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(job)()
