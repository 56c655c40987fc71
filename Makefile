# Every target sets itself up in .venv; a fresh machine needs only Python >= 3.11, make and a C library.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check lint types bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo | test | check | bench | install | clean"

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"MetaDyna needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Name another: make PYTHON=/path/to/python")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

install: .venv/installed

# Meta-train on the 5 x 5 city, compare with the reference policies, draw the curve, film the agent.
demo: install
	rm -rf runs/demo
	$(BIN)/metadyna train dream --preset demo --out runs/demo
	$(BIN)/metadyna evaluate runs/demo
	$(BIN)/metadyna plot runs/demo --out runs/demo/curve.png
	$(BIN)/metadyna render runs/demo --out runs/demo/clip.gif

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

check: lint types test

# One job at a time: rates are only comparable on an otherwise idle machine. `make bench SB3=/path/to/python` compares
# SAC with the Stable-Baselines3 2.9.2 of that Python (pip install torch stable-baselines3==2.9.2 "gymnasium[mujoco]").
bench: install
	$(BIN)/python -m benchmarks.bench $(if $(SB3),--sb3 $(SB3))

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
