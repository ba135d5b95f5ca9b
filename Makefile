# `make demo` and `make test` work on a fresh machine with Python 3.11, pip and make.
# On Linux without a GPU, point pip at PyTorch's CPU wheels first (see README.md), or it fetches gigabytes of CUDA.

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo ui test test-slow test-ui lint format clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(READY)
	test -d demo/pool || $(BIN)/novelsum demo-pool demo/pool
	$(BIN)/novelsum run
	@echo "or, in this checkout: make ui"

ui: $(READY)
	$(BIN)/novelsum ui

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore=tests/browser -m "not slow" \
		-n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Kills, full disks and whole pools again and again: a quarter of an hour.
test-slow: $(READY)
	$(BIN)/python -m pytest tests --ignore=tests/browser -m slow

test-ui: $(READY)
	tests/browser/install-chromium
	$(BIN)/python -m pytest tests/browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint novelsum_dagster dbt_like_sql

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo
