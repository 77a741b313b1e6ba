# `make demo` and `make test` set up what they need: a virtual environment, uv in it, and the package with its tools.
PYTHON ?= python3
BIN := .venv/bin
export GRADIO_ANALYTICS_ENABLED = False

.PHONY: demo test test-slow lint clean

.venv/.done: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else 0'
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip install -q --python $(BIN)/python -e ".[dev]"
	@touch $@

demo: .venv/.done
	@rm -rf runs/demo
	$(BIN)/python train.py experiment=demo
	$(BIN)/python eval.py run=runs/demo split=test show=6
	@echo
	@echo "What to try next:"
	@echo "  look at        runs/demo/samples.png (where attention looked) and: $(BIN)/tensorboard --logdir runs"
	@echo "  caption a file $(BIN)/captioning caption data/shapes/6000-200-200-64px-s0/images/test-00003.png --run runs/demo --attention out.png"
	@echo "  a web page     $(BIN)/captioning serve --run runs/demo   (then http://127.0.0.1:5000/)"
	@echo "  go on training $(BIN)/python train.py experiment=demo trainer.epochs=4"
	@echo "  compose        $(BIN)/python train.py decoder=gru decoder.injection=merge trainer.epochs=2"
	@echo "  your own data  docs/own_data.md"

test: .venv/.done
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile

test-slow: .venv/.done
	$(BIN)/python -m pytest -m slow

lint: .venv/.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv runs data cache
