# Every target sets up what it needs. `make test` on a fresh machine installs and tests; nothing else is needed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help quickstart bench test test-fast test-faults test-torchattacks docs docs-inventories lint types check format clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "iad-ext needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about 6 GB, two minutes) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: $(READY) ## teachers and students on handwritten digits: a table and a picture in two minutes
	$(BIN)/python recipes/quickstart.py

# a file's tests stay together, since they share what is trained for them; the longest files come first
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: $(READY) ## the test suite, on as many as four cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-fast: $(READY) ## the test suite without what starts processes or trains for long
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -q -m "not slow"

test-faults: $(READY) ## kills, damaged files and bad input at length, 15 minutes; REPORT=DIR keeps a report
	$(BIN)/python tests/faults/long.py $(if $(REPORT),--report $(REPORT))

bench: $(READY) ## benchmarks: 25 minutes on two idle cores, 10 on a GPU; ARGS="--only a,b" and the like, OUT=DIR
	$(BIN)/python benchmarks/run.py $(ARGS) $(if $(OUT),--out $(OUT))

test-torchattacks: $(READY) ## the attacks' tests against the other supported torchattacks, 3.5.1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/torchattacks-3.5.1 torchattacks==3.5.1
	IAD_EXT_TORCHATTACKS_PATH=build/torchattacks-3.5.1 $(BIN)/python -m pytest -q tests/test_attacks.py tests/test_step.py

DOCS_OUT ?= docs/_build/html
docs: $(READY) ## the docs site, offline, into docs/_build/html; every warning and broken link is an error
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs $(DOCS_OUT)
	@echo "docs in $(DOCS_OUT)/index.html"

docs-inventories: $(READY) ## fetch what links into torch's, timm's, ART's … docs are looked up in, to be committed
	$(BIN)/python docs/inventories/inventories.py fetch

lint: $(READY) ## style, who may import whom, and no dependency with known vulnerabilities
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python .ci/check_floors.py

types: $(READY) ## mypy, strict
	$(BIN)/mypy

check: lint types docs test-fast ## before every commit, minutes: style, types, docs, the fast tests

format: $(READY) ## format and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what was built, not runs/
	rm -rf $(VENV) build dist docs/_build docs/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
