"""Evaluate a trained run: `python eval.py run=RUN split=test search=beam search.beam_size=5`."""

import hydra
from omegaconf import DictConfig

from captioning.build.compose import entry_point


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(config: DictConfig) -> None:
    from captioning.build.jobs import evaluate

    evaluate(config)


if __name__ == "__main__":
    with entry_point("eval"):
        main()
