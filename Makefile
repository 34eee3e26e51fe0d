# Needs only Python 3.10+ and git: everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check bench

demo: $(VENV)/.demo
	$(BIN)/gatecli demo

test: $(VENV)/.test
	$(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check gatecli tests docs
	$(BIN)/mypy
	$(BIN)/python -m pytest

bench: $(VENV)/.test
	$(BIN)/python tests/benchmarks/startup.py
	$(BIN)/python tests/benchmarks/skipping.py
	$(BIN)/python tests/benchmarks/training.py
	$(BIN)/python tests/benchmarks/exits.py
	$(BIN)/python tests/benchmarks/calibration.py
	$(BIN)/python tests/benchmarks/filters.py
	$(BIN)/python tests/benchmarks/branches.py
	$(BIN)/python tests/benchmarks/channels.py
	$(BIN)/python tests/benchmarks/export.py

# One stamp for each set of extras; made anew when the dependencies change.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
