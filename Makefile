# Everything a person or a machine does with the project. `make setup` is part of every other target.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.hone-setup
IN_RANGE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

# `make setup PYTHON=/path/to/python3.12` names the interpreter; otherwise the first of these that fits is used.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11)

.PHONY: setup quickstart test test-quick bench estimate lint fix

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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not gpu and not bench'

test-quick: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m quick

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
