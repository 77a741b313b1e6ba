"""Evaluate a trained run: `python eval.py run=RUN split=test search=beam search.beam_size=5`."""

from captioning.build.program import run_program


def main() -> None:
    run_program("eval")


if __name__ == "__main__":
    main()
