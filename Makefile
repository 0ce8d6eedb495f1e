# Every target does its own set-up: a machine with Python 3.11 or newer, make and a C compiler is
# enough. On Linux, PyPI's torch brings CUDA with it: without a GPU, point pip at PyTorch's CPU
# wheels in your own pip configuration and save gigabytes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Compiling, most of a test's time, hardly uses a second core by itself.
TEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
INPUTS := setup.cfg pyproject.toml constraints.txt

# Installed packages are pinned, and so is what builds those that come as source: older pips read
# the first of these for both, newer ones want the second for the latter.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all format check bench clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("jaxclone needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# Two sizes of installation, so that the demo does not wait for what only developers need.
$(VENV)/.demo: $(INPUTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(INPUTS) | $(VENV)/bin/python
	$(BIN)/python -m pip install --editable '.[demo,dev]'
	@touch $(VENV)/.demo $@

setup: $(VENV)/.dev ## .venv with everything that the other targets need

demo: $(VENV)/.demo ## train, clone and evaluate at miniature scale; DATA=folder for your recordings
	$(BIN)/jaxclone demo $(if $(DATA),--data '$(DATA)')

test: $(VENV)/.dev ## the quick tests and the examples in docstrings
	$(TEST) -m 'not slow'

test-all: $(VENV)/.dev ## every test
	$(TEST)

format: $(VENV)/.dev ## lay the code out and repair what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: $(VENV)/.dev ## format, lint, types, layering, tests, docs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(TEST) -m 'not slow'

bench: $(VENV)/.dev ## every benchmark, one JSON line each
	@for file in benchmarks/[a-z]*.py; do $(BIN)/python $$file || exit 1; done

clean: ## what was made here: the environment, builds and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find jaxclone data_pipelines configs tests -name __pycache__ -prune -exec rm -rf {} +
