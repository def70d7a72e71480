# One target for each thing a person does here. Each does its own set-up.
PYTHON ?= python3
# An interpreter that is named has an environment of its own: .venv-3.12.1 for PYTHON=python3.12.
VERSION = $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(VERSION))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TRAIN_STAMP := $(VENV)/.training-installed
DOCS_STAMP := $(VENV)/.docs-installed
ARGS ?=
# Workers of pytest-xdist. Many tests wait for processes that they have started, so that two cores
# are enough for three. Neighbours mostly go to one worker, so that those that share a run make one.
WORKERS ?= 3
# The workers, and the commands that tests start, read what one of them has compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: train setup test test-slow test-durations chaos chaos-short soak bench-check check format docs clean

# Training needs none of the tools, but uses an environment that has them.
train: $(if $(wildcard $(STAMP)),$(STAMP),$(TRAIN_STAMP))
	$(BIN)/pdqn launch $(ARGS)

setup: $(STAMP)

$(TRAIN_STAMP): pyproject.toml constraints.txt
	@echo "Installing what training needs into $(VENV), PyTorch included; this takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable .
	touch $(TRAIN_STAMP)

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

chaos: $(STAMP)
	$(BIN)/python -m benchmarks.chaos $(ARGS)

chaos-short: override ARGS += --short --jobs 2
chaos-short: chaos

soak: $(STAMP)
	$(BIN)/python -m benchmarks.chaos.soak $(ARGS)

bench-check: $(STAMP)
	$(BIN)/python -m benchmarks.check_speed $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python tools/check_words.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	$(BIN)/python docs/write_settings.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet $(ARGS)

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis build *.egg-info
