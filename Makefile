# Every target works from a clean clone with nothing but Python 3.11 to 3.13, make and a network.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/elpv

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test test-all lint docs lock clean

help:
	@echo "make setup     create $(VENV) and install the pinned requirements and ahl_jax"
	@echo "make demo      train and evaluate on the ELPV solar cells, in $(WORKDIR)"
	@echo "make test      lint, type checks and the quick tests"
	@echo "make test-all  the same, and the slow tests too"
	@echo "make lint      lint and type checks only"
	@echo "make docs      the documentation, in docs/_build/html"
	@echo "make lock      renew requirements.txt from setup.cfg"
	@echo "make clean     remove $(VENV), caches and build output; runs stay"

setup: $(STAMP)

$(STAMP): requirements.txt setup.cfg pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; \
	ok = (3, 11) <= sys.version_info[:2] <= (3, 13); \
	ok or sys.exit("ahl_jax needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d; " \
	"name another, for example: make setup PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# Every dependency has its line, and Python compiles to bytecode the modules that it imports.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile \
	    --require-hashes --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --no-deps --no-build-isolation --config-settings editable_mode=compat --editable .
	@touch $(STAMP)

demo: setup
	$(BIN)/ahl train elpv --workdir $(WORKDIR)
	$(BIN)/ahl evaluate $(WORKDIR)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-all: lint
	@# Where a worker is begun anew, files are dealt out wrongly, and no failure is reported.
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --max-worker-restart 0 -m ""

docs: setup
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html

lock:
	uv pip compile --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	    --upgrade --quiet --custom-compile-command "make lock" \
	    --extra dev --output-file requirements.txt setup.cfg

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
