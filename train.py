"""Train one run: `python train.py data=flickr8k encoder=resnet50 decoder=attention`. The same command goes on where it stopped."""

from captioning.build.program import run_program


def main() -> None:
    run_program("train")


if __name__ == "__main__":
    main()
