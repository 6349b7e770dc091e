# Everything a user needs: `make demo` and `make test` set themselves up.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
OUT    ?= runs/demo
DATA   ?=
MODEL  ?=
PYTEST ?= -n 2 --dist loadfile --no-loadscope-reorder
PROBES ?=
TESTS  ?= tests
AUTHORS ?=
IMAGES ?=

# compiled code is kept, whatever the environment says: without it each process of the
# tests and of the demo compiles the package, its tests and TRL anew, 15 s of each
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test quick lint format package bench evidence reproduce clean

demo: $(READY)  ## SFT -> DPO and extend -> DPO, watched; DATA= and MODEL= for one's own
	$(BIN)/learndyn demo --out $(OUT) --overwrite \
	  $(if $(DATA),--data $(DATA)) $(if $(MODEL),--model $(MODEL))

test: $(READY)  ## all tests; two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST)

quick: $(READY)  ## tests of a minute, after each edit; TESTS= for files or folders
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST) --quick $(TESTS)

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

package: $(READY)  ## wheel and sdist; each, without torch, reads a run
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python tests/support/try_wheel.py

bench: $(READY)  ## what scoring, forces and reading cost: time, memory, error; PROBES= for a file
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/probing.py $(if $(PROBES),--probes $(PROBES))
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/forces.py $(if $(PROBES),--probes $(PROBES))
	$(BIN)/python benchmarks/reading.py

reproduce: $(READY)  ## the paper's figures, each beside its claim; MODEL= DATA= PROBES= or AUTHORS=
	$(BIN)/learndyn paper reproduce --out runs/reproduce \
	  $(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data $(DATA)) \
	  $(if $(PROBES),--probes $(PROBES)) $(if $(AUTHORS),--authors $(AUTHORS)) \
	  $(if $(IMAGES),--images $(IMAGES))

evidence: $(READY)  ## the tables of docs/embedded-world.md, from nothing (about an hour)
	$(BIN)/python -m learndyn.paper.world.evidence --out runs/evidence

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) with venv is needed: \
	apt-get install python3.11-venv, or PYTHON=path" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
