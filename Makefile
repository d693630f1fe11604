# On a fresh machine `make run` and `make test` do everything; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help install install-dev run tables test test-all lint docs notebook bench faults planted format wheel-test clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: .venv/installed          ## set up .venv for `run`

install-dev: .venv/installed-dev  ## ... and for `test`, `lint` and `bench`

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: setup.cfg pyproject.toml | .venv/bin/python
	$(PIP) -e .
	@touch $@

.venv/installed-dev: setup.cfg pyproject.toml | .venv/bin/python
	$(PIP) -e '.[dev]'
	@touch .venv/installed $@

.venv/installed-docs: setup.cfg pyproject.toml | .venv/installed
	$(PIP) -e '.[docs]'
	@touch $@

run: install     ## the main job: the CLIPTeX comparison on the mini world
	$(BIN)/python -m benchmark run --backbone cliptex

# in one process more than there are cores: some wait
PYTEST := $(BIN)/python -m pytest -n $$(( $$(nproc 2>/dev/null || echo 1) + 1 )) --dist loadfile --no-loadscope-reorder

tables: install  ## the studies of docs/guide/cliptex.md, three seeds each (two hours on two cores)
	$(BIN)/python -m benchmark.studies

test: lint       ## lint, then what protects a change: the tests marked unit and integration
	$(PYTEST) -m "not cluster and not slow"

test-all: lint   ## lint, then all tests, also on SLURM, Ray, PostgreSQL and in a browser
	$(PYTEST)

lint: install-dev ## ruff (lint and format), mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev ## let ruff rewrite; show files in the pages again
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m tests.docs.shown_files

docs: .venv/installed-docs ## build the documentation as site/index.html; warnings are errors
	$(BIN)/python -m tests.docs.shown_files
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebook: .venv/installed-docs ## run docs/guide/python.ipynb again, in a temporary folder
	folder=$$(mktemp -d) && cp docs/guide/python.ipynb $$folder && \
	  CLIPTEX_HOME=$$folder/home MLFLOW_TRACKING_URI=sqlite:///$$folder/mlflow.db PYTHONWARNINGS=ignore \
	  $(BIN)/python -m nbconvert --to notebook --execute --ExecutePreprocessor.record_timing=False --inplace $$folder/python.ipynb && \
	  cp $$folder/python.ipynb docs/guide; code=$$?; rm -rf $$folder; exit $$code

bench: install-dev ## measure, and write docs/benchmarks.md and .json; SOURCES=CHECKOUTS for all rows
	$(BIN)/python -m tests.performance $(if $(SOURCES),--sources $(SOURCES))

planted: install-dev         ## plant faults in a copy, which tests must catch (half an hour)
	$(BIN)/python -m tests.planted

faults: install-dev ## kill commands, fill disks, damage stores (an hour); FAULTS="store --points 100 --seed 1"
	$(BIN)/python -m tests.faults $(FAULTS)

wheel-test:      ## run the smoke suite from a wheel in an empty environment
	PYTHON=$(PYTHON) .ci/wheel

clean:           ## delete build products (not your MLflow runs)
	rm -rf .venv build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
