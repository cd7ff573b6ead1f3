# `make demo` and `make test` set up everything they need; nothing has to be installed first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
OUT ?= demo-report
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## Compare attention on handwritten digits and write a report (1 to 4 minutes)
	$(BIN)/foveate compare --out $(OUT)

test: $(VENV)/.test ## Run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-gpu: ## Run the tests that need a graphics card, with PYTHON and the packages it has
	PYTHONPATH=src $(PYTHON) -m pytest -m gpu $$(grep -rl --include='*.py' 'mark\.gpu' tests)

bench: $(VENV)/.test ## Measure the gates against every rival and write the page (50 minutes)
	$(BIN)/python benchmarks/kernels.py $(ARGS)

bench-gpu: ## The same on a graphics card, with PYTHON and the packages it has
	PYTHONPATH=src $(PYTHON) benchmarks/kernels.py --device cuda $(ARGS)

lint: $(VENV)/.lint ## Check format, lint, strict types and import floors
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint ## Format the code and mend what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: $(VENV)/.docs ## Build the documentation site into site/
	$(BIN)/mkdocs build --strict

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.demo: $(BIN)/uv pyproject.toml constraints.txt
	$(UV) --editable '.[train]'
	@touch $@

$(VENV)/.test: $(BIN)/uv pyproject.toml constraints.txt
	$(UV) --editable '.[test]'
	@touch $@

$(VENV)/.lint: $(BIN)/uv pyproject.toml constraints.txt
	$(UV) --editable '.[test,lint]'
	@touch $@

$(VENV)/.docs: $(BIN)/uv pyproject.toml constraints.txt
	$(UV) --editable '.[train,docs]'
	@touch $@

clean: ## Remove everything that the targets above made
	rm -rf $(VENV) $(OUT) site dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

.PHONY: help demo test test-gpu bench bench-gpu lint format docs clean
