# Needs only Python 3.10+ and git: everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: demo test check bench

demo: $(VENV)/.demo
	$(BIN)/gatecli demo

test: $(VENV)/.test
	$(PYTEST)

check: $(VENV)/.dev
	$(BIN)/ruff check gatecli tests docs
	$(BIN)/mypy
	$(PYTEST)

# QUICK=--quick for few rounds and cases
bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/all.py $(QUICK)

# One stamp for each set of extras; made anew when the dependencies change.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
