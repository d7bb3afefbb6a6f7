# Two commands for newcomers: `make demo` and `make test`. Everything is installed into .venv.

PYTHON ?= python3
# torch to install. The pinned release; where pip would pick a CUDA build on a machine without a GPU:
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
WORKERS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)

ROUNDS ?= 5
STEPS ?= 20

BIN := .venv/bin
STAMP := .venv/.installed
RACE := .race-venv

.PHONY: demo test slow check speed race gpu faults docs board pocket village clean

demo: $(STAMP)  ## Attack the shipped pocket models and print a leaderboard.
	$(BIN)/reroute run quickstart --workers $(WORKERS) --out runs/quickstart

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: $(STAMP)  ## Run the tests, but for the slowest.
	$(PYTEST) -m "not slow"

slow: $(STAMP)  ## Run the slowest tests.
	$(PYTEST) -m slow

check: $(STAMP)  ## Lint and type-check.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

speed: $(STAMP)  ## Time the parts of a search step.
	$(BIN)/python -m pytest tests/speed --benchmark-enable --benchmark-only

race: $(STAMP) $(RACE)/.installed  ## Race nanoGCG, in an environment of its own: a step, and to success.
	$(BIN)/python -m benchmarks.race --peer $(RACE)/bin/python --rounds $(ROUNDS) --steps $(STEPS)
	$(BIN)/python -m benchmarks.race.success --peer $(RACE)/bin/python

gpu: $(STAMP)  ## Exactness, speed, searches together, race and a board on a graphics card, in 9 minutes.
	$(BIN)/python -m benchmarks.studies.gpu

faults: $(STAMP)  ## Kill runs 50 times, and feed 10,000 hostile inputs: half an hour.
	$(BIN)/python tests/benchmarks/kills.py --kills 50 --out results/faults
	REROUTE_FUZZ=1250 $(BIN)/python -m pytest tests/benchmarks/test_fuzz.py tests/benchmarks/test_fuzz_plugins.py

BOARDS := pocket-board pocket-rerouting pocket-interventions

board: $(STAMP)  ## Run the committed boards and refresh their tables and README's picture.
	for suite in $(BOARDS); do \
	  $(BIN)/reroute run $$suite --workers $(WORKERS) --out results/$$suite >/dev/null || exit 1; done
	$(BIN)/reroute leaderboard $(BOARDS:%=results/%) --readme results/boards.md
	$(BIN)/python -m benchmarks.boards.overview $(BOARDS:%=results/%)

docs: $(STAMP)  ## Build the documentation as a site, in build/site.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

pocket: $(STAMP)  ## Train the pocket models again and recompute their cards.
	$(BIN)/python data/pocket/world.py
	$(BIN)/python data/pocket/train.py
	$(BIN)/python data/pocket/harden.py
	$(BIN)/python data/pocket/tokens.py
	$(BIN)/python data/pocket/pretext.py
	$(BIN)/python data/pocket/think.py
	$(BIN)/python data/pocket/mixture.py
	$(BIN)/python data/pocket/recipes.py
	$(BIN)/python data/pocket/breaker.py
	$(BIN)/python data/pocket/card.py

village: $(STAMP)  ## Train the adapters of the village model again and recompute the cards.
	$(BIN)/python data/village/prompts.py
	$(BIN)/python data/village/train.py
	$(BIN)/python data/village/pairs.py
	$(BIN)/python data/village/hard.py
	$(BIN)/python data/village/card.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

$(RACE)/.installed: benchmarks/race/constraints.txt
	$(PYTHON) -m venv $(RACE)
	$(RACE)/bin/python -m pip install --quiet $(TORCH)
	$(RACE)/bin/python -m pip install --quiet --constraint $< nanogcg transformers
	touch $@

clean:
	rm -rf .venv $(RACE) runs
