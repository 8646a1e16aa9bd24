# Needs Python >= 3.11, git and make; everything else is installed into .venv.
# Works from any folder (make -C, make -f) and with spaces in the path.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
ROOT := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd)
PYTHON := .venv/bin/python
# a core a process, since threads of several would wait for each other; every module compiled once; freed memory kept
TEST_ENVIRONMENT := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 \
	MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_TOP_PAD_=16777216
SEED := 0
FUZZ := 100000
FAULTS := tests/faults tests/*/test_*faults.py tests/*/test_hostile*.py tests/training/test_resume.py \
	tests/runs/test_first_write.py
DEMO := runs/demo$(if $(filter-out 0,$(SEED)),-$(SEED))
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-faults test-floor check bench docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' "$(ROOT)/Makefile"

demo:  ## install, pre-train on handwritten digits, evaluate, report: two minutes on two cores; SEED=1 for another one
	@cd "$(ROOT)" && tools/install
	@cd "$(ROOT)" && $(PYTHON) -m matrix_ssl pretrain demo --out $(DEMO) --set seed=$(SEED)
	@cd "$(ROOT)" && $(PYTHON) -m matrix_ssl evaluate $(DEMO)

test:  ## install what the tests need and run them
	@cd "$(ROOT)" && tools/install test
	@cd "$(ROOT)" && $(TEST_ENVIRONMENT) $(PYTHON) -m pytest -m "not slow" -n auto --dist loadfile

test-slow:  ## the tests that take minutes
	@cd "$(ROOT)" && tools/install test
	@cd "$(ROOT)" && $(PYTHON) -m pytest -m slow

test-faults:  ## kills, signals, full disks, hostile folders, and FUZZ=100000 damaged inputs of every parser
	@cd "$(ROOT)" && tools/install test
	@cd "$(ROOT)" && MATRIX_SSL_FUZZ=$(FUZZ) $(TEST_ENVIRONMENT) $(PYTHON) -m pytest -n auto --dist worksteal $(FAULTS)

test-floor:  ## test the losses with the oldest PyTorch and nothing else, in an environment of its own that is removed
	@cd "$(ROOT)" && tools/test-floor

check:  ## formatting, lint and types
	@cd "$(ROOT)" && tools/install dev
	@cd "$(ROOT)" && $(PYTHON) -m ruff format --check . && $(PYTHON) -m ruff check . && $(PYTHON) -m mypy

bench:  ## measure losses, entropies, processes, views and neighbours: an hour
	@cd "$(ROOT)" && tools/install
	@cd "$(ROOT)" && for name in speed.views speed.losses speed.method_losses speed.matrix_entropy experiments.taylor_gradients speed.entropies speed.toolbox speed.processes speed.knn_memory speed.rank_memory speed.llm_loss pages.tables pages.publish_toolbox; do $(PYTHON) -m benchmarks.$$name; done

docs:  ## build the documentation into site/
	@cd "$(ROOT)" && tools/install docs
	@cd "$(ROOT)" && $(PYTHON) -m mkdocs build --strict --quiet && echo "site/index.html"

clean:  ## remove the environment and caches; runs/ stays
	@cd "$(ROOT)" && rm -rf .venv build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@cd "$(ROOT)" && find . -name __pycache__ -prune -exec rm -rf {} +
