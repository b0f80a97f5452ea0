# `make lab` opens the notebooks, `make test` checks everything; each sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := binder/constraints.txt
PEERS := tests/peers.txt
TORCH ?= $(shell sed -n 's/^torch==//p' $(LOCK))
LAB_FLAGS ?=
WORKERS ?= 2

# Jupyter refuses to run as root unless told to.
ROOT_FLAG := $(if $(filter 0,$(shell id -u)),--allow-root)

# Tests: one thread a worker (small models), and nobody's Jupyter or IPython configuration.
TEST_ENV := OMP_NUM_THREADS=1 LCA_CACHE= IPYTHONDIR='$(CURDIR)/build/ipython' JUPYTER_CONFIG_DIR='$(CURDIR)/build/jupyter'
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest
NBVAL := -p tests.notebooks.comparison --nbval --nbval-current-env --nbval-cell-timeout=120 --timeout=300 -n $(WORKERS) --dist loadscope notebooks

.DEFAULT_GOAL := help
.PHONY: help lab test lint types unit notebooks-check notebooks-check-generic browser browser-deps \
	notebooks format bench lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lab: $(VENV)/.runtime ## Open JupyterLab on the notebooks (LAB_FLAGS="--no-browser --port=9999")
	$(BIN)/jupyter lab $(ROOT_FLAG) $(LAB_FLAGS) notebooks/00_start_here.ipynb

test: lint types unit notebooks-check notebooks-check-generic browser ## Run every check

lint: $(VENV)/.test ## Check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.test ## Check types
	$(BIN)/mypy

unit: $(VENV)/.test ## Run the unit tests and the examples in docstrings
	$(PYTEST) -n $(WORKERS) lca_widgets tests \
		--ignore=tests/notebooks --ignore=tests/browser

notebooks-check: $(VENV)/.test ## Run the notebooks and compare with their stored output
	$(PYTEST) tests/notebooks
	$(PYTEST) $(NBVAL)

# Figures must not depend on the processor: once more without vector instructions.
notebooks-check-generic: $(VENV)/.test
	ATEN_CPU_CAPABILITY=default $(PYTEST) $(NBVAL)

browser: $(VENV)/.test browser-deps ## Run the browser tests
	$(PYTEST) tests/browser

CHROMIUM_NAMES := chromium chromium-browser google-chrome google-chrome-stable
browser-deps: # Find a Chromium, or install Debian's
	@if [ -n "$$LCA_CHROMIUM" ]; then \
		[ -x "$$LCA_CHROMIUM" ] || { echo "LCA_CHROMIUM=$$LCA_CHROMIUM is no program." >&2; exit 1; }; \
		exit 0; \
	fi; \
	for name in $(CHROMIUM_NAMES); do command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ]; then sudo=; \
	elif sudo -n true 2>/dev/null; then sudo=sudo; \
	else sudo=none; fi; \
	if [ "$$sudo" = none ] || ! command -v apt-get >/dev/null; then \
		echo "The browser tests need Chromium or Chrome: install one, or set LCA_CHROMIUM to its path." >&2; \
		exit 1; \
	fi; \
	$$sudo apt-get update -qq && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium

notebooks: $(VENV)/.test ## Run the notebooks and store their output
	$(TEST_ENV) $(BIN)/python -m tests.notebooks.refresh

format: $(VENV)/.test ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.test browser-deps ## Run the benchmarks, the lab's answering times among them
	$(PYTEST) tests/benchmarks --benchmark-enable --benchmark-only
	$(TEST_ENV) $(BIN)/python -m tests.benchmarks.lab_latency

clean: ## Remove the environment, builds and caches
	rm -rf $(VENV) build dist .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find lca_widgets tests notebooks binder \( -name __pycache__ -o -name .ipynb_checkpoints \) \
		-prune -exec rm -rf {} +

# Torch goes first and by its exact version: left to the resolver, a newer CUDA build may win.
# A CPU build: PIP_EXTRA_INDEX_URL=<PyTorch's CPU index, see binder/requirements.txt> make lab
$(VENV)/.runtime: pyproject.toml $(LOCK)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "lca_widgets needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@echo "Setting up $(VENV): some minutes and 2 GB, once."
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c $(LOCK) torch==$(TORCH)
	$(PIP) install -q -c $(LOCK) -e '.[lab]'
	@touch $@

# Without what the peers ask for: one of them would bring a torchvision, and with it another torch.
$(VENV)/.test: $(VENV)/.runtime $(PEERS)
	$(PIP) install -q -c $(LOCK) -e '.[lab,test]'
	$(PIP) install -q --no-deps -r $(PEERS)
	@touch $@

# The newest versions that pyproject.toml admits, with the torch named: make lock TORCH=2.13.0
lock: ## Renew the pinned versions
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install -q --upgrade pip setuptools
	build/lock/bin/python -m pip install -q torch==$(TORCH)
	build/lock/bin/python -m pip install -q '.[lab,test]'
	{ sed '/^[^#]/,$$d' $(LOCK); \
	  build/lock/bin/python -m pip freeze --all --exclude pip --exclude lca_widgets \
	  | sed 's/+[^ ]*$$//' | LC_ALL=C sort -f; } > build/lock.txt
	mv build/lock.txt $(LOCK)
