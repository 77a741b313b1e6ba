"""Train one run: `python train.py data=flickr8k encoder=resnet50 decoder=attention`. The same command goes on where it stopped."""

import hydra
from omegaconf import DictConfig

from captioning.build.compose import CONFIGS, entry_point
from captioning.errors import plain_errors


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")
def main(config: DictConfig) -> None:
    from captioning.build.jobs import train

    with plain_errors():  # here too: what leaves a job, Hydra comments on
        train(config)


if __name__ == "__main__":
    with entry_point("train"):
        main()
