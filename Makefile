# Needs only Python 3.10+ and git: everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOOR := .venv-floor
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --config-file docs/site/mkdocs.yml
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: demo test slow test-floor check docs bench gpu campaign claims plane budget release

demo: $(VENV)/.demo
	$(BIN)/gatecli demo

# at the newest versions that pip finds
test: $(VENV)/.test
	$(BIN)/python $(PYTEST)

# those that take long and tell little more, as large networks of a family; before a release
slow: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m slow

# at the lowest ones that pyproject.toml allows
test-floor: $(FLOOR)/.test
	$(FLOOR)/bin/python $(PYTEST)

check: $(VENV)/.dev
	$(BIN)/ruff format --check gatecli tests docs
	$(BIN)/ruff check gatecli tests docs
	$(BIN)/mypy
	$(SITE)
	$(BIN)/python $(PYTEST)

# The documentation site, in .site/index.html; a warning, as of a link that leads nowhere, is an error (but not with --quiet, which hides it).
docs: $(VENV)/.docs
	$(SITE)

# QUICK=--quick for few rounds and cases
bench: $(VENV)/.bench
	$(BIN)/python tests/benchmarks/all.py $(QUICK)

# The tests that need a GPU, then what it takes there, written into docs/benchmarks.md.
gpu: $(VENV)/.test
	@$(BIN)/python tests/benchmarks/gpu.py --tests --docs docs/benchmarks.md $(QUICK)

# Damaged files, killed commands, simulated splits: make campaign CAMPAIGN="--files 5000 --kills 60 --splits 2000 --seed 0"
campaign: $(VENV)/.test
	PYTHONPATH=tests $(BIN)/python -m campaigns $(CAMPAIGN)

# The packages, checked, then installed and run in an environment of their own; upload them with twine.
release: $(VENV)/.release
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tests/release.py dist

# One stamp for each set of extras; made anew when the dependencies change.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

# tests/floor.py reads the floors from what pyproject.toml says, so that they stand there alone.
$(FLOOR)/.test: pyproject.toml tests/floor.py
	test -x $(FLOOR)/bin/python || $(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check packaging
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(FLOOR)/bin/python tests/floor.py test > $(FLOOR)/floors.txt
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(FLOOR)/floors.txt --editable '.[test]'
	touch $@

# The papers' claims, run by run, and docs/claims.md: make claims DATA=glyphs36.npz PAPER=gaternet SEEDS="0 1 2"
# (no PAPER: all; MORE=--quick: one epoch of few images; hours otherwise, and it goes on where it was stopped)
DATA ?= glyphs36.npz
SEEDS ?= 0 1 2
# Linux gives tensors of 32 MB and more back with each use, and asks for them again: half of the time of GateConnect
KEPT = MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
claims: $(VENV)/.test
	$(KEPT) PYTHONPATH=docs/experiments $(BIN)/python -m claims --data $(DATA) --paper $(PAPER) --seeds $(SEEDS) $(MORE)

# All methods on one network, and docs/plane.md: make plane DATA=glyphs36.npz, then, on an idle machine, make plane DATA=glyphs36.npz MORE=--time
plane: $(VENV)/.test
	PYTHONPATH=docs/experiments $(BIN)/python -m plane --data $(DATA) $(MORE)

# One budget met in several ways, and docs/budget.md: make budget DATA=glyphs36.npz PART=resnet20 SEEDS="0 1 2" MORE=--quick, as above
budget: $(VENV)/.bench
	PYTHONPATH=docs/experiments:tests $(BIN)/python -m budget --data $(DATA) --part $(PART) --seeds $(SEEDS) $(MORE)
