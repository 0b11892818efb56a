# Everything a person or a machine does with the project. `make setup` is part of every other target.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.hone-setup
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

# `make setup PYTHON=/path/to/python3.12` names the interpreter; otherwise the first of these that fits is used.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)

.PHONY: setup quickstart test test-quick bench estimate lint fix \
    test-e2e-quick test-e2e-workflow test-e2e-real-model test-e2e-full test-e2e-all

setup: $(STAMP)

# An environment that is there and works is kept. pip installs only what is missing or of another version.
$(STAMP): pyproject.toml constraints.txt
	@if ! $(BIN)/python -c '$(IN_RANGE)' 2>/dev/null; then \
	    for candidate in $(CANDIDATES); do \
	        if "$$candidate" -c '$(IN_RANGE)' 2>/dev/null; then found="$$candidate"; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "setup: none of these is Python 3.11, 3.12 or 3.13: $(CANDIDATES)" >&2; \
	        echo "hint: make setup PYTHON=/path/to/python3.12" >&2; exit 1; \
	    fi; \
	    echo "setup: making $(VENV) with $$("$$found" --version)"; \
	    "$$found" -m venv --clear $(VENV) || exit 1; \
	fi
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	    $(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[test]'
	@touch $(STAMP)

quickstart: setup
	$(BIN)/hone quickstart

# One thread a worker: two workers with two threads each are slower on two cores.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not gpu and not bench and not e2e_workflow and not e2e_real_model and not e2e_full'

test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m quick

# End to end with the real command, in tiers. Each writes what it ran, how long that took and on what
# machine into build/e2e/<tier>.json. HONE_E2E_MODEL=<Hub id or folder> is the real model, where it is set.
E2E = HONE_E2E_REPORT=build/e2e/$(1).json $(BIN)/python -m pytest tests/e2e -m e2e_$(subst -,_,$(1))

test-e2e-quick: test-e2e-workflow

test-e2e-workflow: setup
	$(call E2E,workflow)

test-e2e-real-model: setup
	$(call E2E,real-model)

test-e2e-full: setup
	$(call E2E,full)

test-e2e-all: test-e2e-workflow test-e2e-real-model test-e2e-full

bench: setup
	$(BIN)/python -m benchmarks.sft
	$(BIN)/python -m benchmarks.dpo
	$(BIN)/python -m benchmarks.grpo

estimate: setup
	$(BIN)/python -m benchmarks.estimate

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
