# Every target sets itself up: Python >= 3.11, git and a package index are enough.
# PYTHON=python3.12 picks the interpreter that .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
LOWEST := .venv-lowest
# What depends on transformers most; the rest of the tests would say nothing new.
LOWEST_TESTS := tests/contracts/test_support_table.py tests/contracts/test_discovery.py \
  tests/contracts/test_deepstack.py tests/unit/models/test_load.py \
  tests/unit/models/test_generators.py tests/unit/models/test_prompt_quirks.py \
  tests/unit/models/test_token_types.py tests/unit/hooks/test_exits.py

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-lowest check bench format clean

help:
	@echo 'make demo    audit the built-in organism, mend it with ShiftDC, write out/demo/report.html'
	@echo 'make test    run the tests'
	@echo 'make test-lowest  run those that depend on transformers, on the lowest that is supported'
	@echo 'make check   lint, format, types, import direction, architecture rules, docs code'
	@echo 'make bench   side-by-side measurements (benchmarks/)'
	@echo 'make format  apply the formatter and the safe lint fixes'
	@echo 'make clean   remove .venv, out/ and caches'

setup: $(STAMP)

# Redone only when the dependencies change; .ci/setup takes a lock, so two makes may race.
$(STAMP): pyproject.toml constraints.txt .ci/setup
	@PYTHON='$(PYTHON)' .ci/setup

$(LOWEST)/.ready: pyproject.toml constraints.txt constraints-lowest.txt .ci/setup
	@PYTHON='$(PYTHON)' .ci/setup lowest

demo: $(STAMP)
	$(BIN)/vlmend demo --out out/demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest -n auto --dist worksteal $(or $(ARGS),$(LOWEST_TESTS))

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/architecture tests/docs
	$(BIN)/python -m pytest -q --doctest-modules src/vlmend

bench: $(STAMP)
	@$(BIN)/python -c 'import nnsight' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[bench]'
	$(BIN)/python benchmarks/run.py $(ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv $(LOWEST) out build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
