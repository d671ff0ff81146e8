# `make train` and `make test` need nothing but Python >= 3.11: they set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint speed clean

train: $(BIN)/.ready
	$(BIN)/python -m train.latent

test: $(BIN)/.ready
	$(BIN)/python -m pytest tests

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

speed: $(BIN)/.ready
	$(BIN)/python -m train.speed

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache build dist *.egg-info
