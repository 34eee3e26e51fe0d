# Needs only Python 3.10+ and git: everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: demo test check bench campaign

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

# Damaged files, killed commands, simulated splits: make campaign CAMPAIGN="--files 5000 --kills 60 --splits 2000 --seed 0"
campaign: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m campaigns $(CAMPAIGN)

# One stamp for each set of extras; made anew when the dependencies change.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@
