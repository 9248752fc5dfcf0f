# Two commands matter: `make demo` and `make test`. Both set up everything they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
# A project beside the clone, which stays as it is; `make ui DEMO=.` shows the clone's own runs.
DEMO ?= build/demo
export PATH := $(BIN):$(PATH)
# DVC and MLflow report usage over the network unless told not to.
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
# MLflow's server would start seven more processes for jobs of language models.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.PHONY: help setup demo test test-long test-fast test-gpu lint docs format lock ui clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## Create the environment from requirements.lock

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vidpipe needs Python 3.11 or newer; set PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	# Compiled once: with PYTHONDONTWRITEBYTECODE, as in many containers, every command would compile
	# PyTorch's and MLflow's thousands of modules again, for ten seconds and more.
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes \
	  --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(READY)

demo: $(READY) ## Run the whole pipeline on the embedded data set, in build/demo, and show the table
	@python scripts/demo.py $(DEMO)

test: $(READY) ## Run the whole test suite, two files at a time
	# A file stays together: what its tests share is made once. In their order: end-to-end tests, which
	# take longest, come first, and the other process goes through the rest beside them.
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(READY) ## Run what `make test` leaves out: searches, lost nodes, new random examples
	python -m pytest -m long
	python -m pytest -n 2 -m "hypothesis and not long" --hypothesis-profile=explore

test-gpu: $(READY) ## Run the tests that need a CUDA GPU, which the others skip without one
	python -m pytest -m gpu

test-fast: $(READY) ## Run the tests that take seconds
	python -m pytest -m "not slow and not long"

lint: $(READY) ## Ruff, its formatter and the type checker
	ruff check .
	ruff format --check .
	mypy
	mypy benchmarks examples

docs: $(READY) ## Build the documentation into build/docs; a broken link is an error
	sphinx-build -W --keep-going -q -b html docs build/docs
	@echo "docs: build/docs/index.html"

format: $(READY) ## Let ruff rewrite what it can
	ruff check --fix .
	ruff format .

lock: ## Resolve requirements.lock anew (versions and hashes, no addresses)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	  --upgrade --quiet --output-file requirements.lock

ui: $(READY) ## Open the MLflow UI of the demo on http://127.0.0.1:5000
	mlflow ui --backend-store-uri sqlite:///$(abspath $(DEMO))/mlflow.db --host 127.0.0.1

clean: ## Remove caches and untracked run data; keeps DVC's cache and the environment
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis ray outputs build
