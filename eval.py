"""Evaluate a trained run: `python eval.py run=RUN split=test search=beam search.beam_size=5`."""

import hydra
from omegaconf import DictConfig

from captioning.build.compose import CONFIGS, entry_point
from captioning.errors import plain_errors


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="eval")
def main(config: DictConfig) -> None:
    from captioning.build.jobs import evaluate

    with plain_errors():  # here too: what leaves a job, Hydra comments on
        evaluate(config)


if __name__ == "__main__":
    with entry_point("eval"):
        main()
