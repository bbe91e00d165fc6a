# Two commands do everything: `make demo` and `make test`. Both set up first, which takes a few minutes the first time.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
# Folders whose every test starts processes or imports torch; collecting them alone would take seconds.
HEAVY := --ignore=tests/end_to_end --ignore=tests/agent/integration --ignore=tests/agent/training --ignore=tests/server/federation/test_flower.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test unit check format schemas clean

help: ## what each target does
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

setup: $(STAMP) ## install everything into .venv, pinned by constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Covey and what it needs (about 3 GB; a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

demo: setup ## the main job on this machine: train, quantize, ship, serve, break, roll back
	$(BIN)/covey demo $(ARGS)

test: setup ## every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope $(ARGS)

unit: setup ## the fast tests only
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope $(HEAVY) -m "not database and not broker and not flower and not runtime and not browser and not slow and not end_to_end" $(ARGS)

check: setup ## linters, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

schemas: setup ## write the contract's JSON Schemas
	$(BIN)/python -m covey_contract.schema

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
