# `make train`, `make test`, `make slow` and `make all` (both) need nothing but Python >= 3.11: they set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test slow all eval lint speed clean

train: $(BIN)/.ready
	$(BIN)/python -m train.latent

test: $(BIN)/.ready
	$(BIN)/python -m pytest tests -n auto -m "not slow"

slow: $(BIN)/.ready
	$(BIN)/python -m pytest tests -n auto -m slow

all: $(BIN)/.ready
	$(BIN)/python -m pytest tests -n auto

eval: $(BIN)/.ready
	$(BIN)/python -m train.latent sim --train.steps 1200 --no-latency --out runs/eval
	$(BIN)/python -m eval.harness run --model latent --tasks cups --batch_size 64 \
		--model_args pretrained=$$(dirname $$(ls -td runs/eval/*/model | head -1)) --output_path runs/eval/results

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

speed: $(BIN)/.ready
	$(BIN)/python -m train.speed

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
