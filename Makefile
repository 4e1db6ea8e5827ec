# Two commands for a new user: make demo, make test. Paths are relative, so the checkout may lie anywhere.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint types tests format docs
demo: .venv
	$(BIN)/potstill demo

test: lint types tests

lint: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv
	$(BIN)/mypy

tests: .venv
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

format: .venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: .venv
	$(BIN)/python -m potstill.methods > docs/methods.md

# The stamp is newer than pyproject.toml once everything is installed: a second call installs nothing.
.venv: .venv/.installed
.venv/.installed: pyproject.toml
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory new-venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	touch .venv/.installed

.PHONY: new-venv
new-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'Potstill needs Python 3.11 or newer: make PYTHON=python3.12 ...' >&2; exit 1; }
	$(PYTHON) -m venv .venv
