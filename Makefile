# One target for each thing a person does here. Each does its own set-up.
PYTHON ?= python3
# An interpreter that is named has an environment of its own: .venv-3.12.1 for PYTHON=python3.12.
VERSION = $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(VERSION))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
# Workers of pytest-xdist. Many tests wait for processes that they have started, so that two cores
# are enough for three. Those that share a run stand beside each other, and so go to one worker.
WORKERS ?= 3
# The workers, and the commands that tests start, read what one of them has compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train setup test test-slow test-durations check format clean

train: $(STAMP)
	$(BIN)/pdqn launch $(ARGS)

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal $(ARGS)

test-durations: override ARGS += --durations 25
test-durations: test

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build *.egg-info
