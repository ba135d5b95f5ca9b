# `make demo` and `make test` work on a fresh machine with Python 3.11, 3.12 or 3.13, pip and make. They install all
# extras and the tools for development.
# On Linux without a GPU, point pip at PyTorch's CPU wheels first (see README.md), or it fetches gigabytes of CUDA.

# The newest supported Python that runs: a version manager may have commands on the path that do not.
RUNS = $(shell for one in python3.13 python3.12 python3.11; do $$one --version > /dev/null 2>&1 && echo $$one && break; done)
PYTHON ?= $(or $(RUNS),$(error none of python3.13, python3.12 and python3.11 runs: install one, or name yours: make PYTHON=...))
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup lock demo ui test test-slow test-all test-ui lint docs wheel format audit image up down clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip --editable ".[dev]"
	touch $@

# Pins one version of everything for all supported Pythons and systems. Versions that are pinned already stay where
# they may; for the newest of all, remove constraints.txt first.
lock:
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --all-extras --no-annotate \
		--custom-compile-command "make lock" --output-file constraints.txt pyproject.toml

demo: $(READY)
	test -d demo/pool || $(BIN)/novelsum demo-pool demo/pool
	$(BIN)/novelsum run
	@echo "or, in this checkout: make ui"

ui: $(READY)
	$(BIN)/novelsum ui

# Every module of the package, in minutes.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore=tests/browser -m "not slow" \
		-n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Kills, full disks, deployments and whole pools again and again: a quarter of an hour and more.
# Several wait for a moment within a run: one that fails beside others runs once more, alone.
test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore=tests/browser -m slow \
		-n auto --maxprocesses 2 --dist loadfile --no-loadscope-reorder || \
	$(BIN)/python -m pytest tests --ignore=tests/browser -m slow --last-failed --last-failed-no-failures none

# What CI runs; the tests in a browser are `make test-ui`.
test-all: test test-slow

test-ui: $(READY)
	tests/browser/install-chromium
	$(BIN)/python -m pytest tests/browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sqlfluff lint novelsum_dagster dbt_like_sql
	$(BIN)/hadolint docker/Dockerfile
	$(BUILD_DOCS)

# To site/, which opens from the disk; any warning fails. The variable silences a notice of MkDocs' theme.
BUILD_DOCS = NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs: $(READY)
	$(BUILD_DOCS)

wheel: $(READY)
	tests/check-wheel

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A list of all that is installed (CycloneDX), and its known weaknesses. PyPI knows no "+cpu" behind a version. Where
# pip-audit cannot ask, it ends in a traceback, of which the last line says why.
audit: $(READY)
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-file sbom.json $(BIN)/python
	$(BIN)/pip list --exclude-editable --format freeze | sed 's/+.*//' > .venv/installed.txt
	$(BIN)/pip-audit --strict --requirement .venv/installed.txt --no-deps --disable-pip 2> .venv/audit.log; \
		status=$$?; tail -n 1 .venv/audit.log; exit $$status

# docs/deploy.md. ENGINE: docker, podman or buildah, the first that answers.
ANSWERS = $(shell for one in docker podman buildah; do $$one info > /dev/null 2>&1 && echo $$one && break; done)
ENGINE ?= $(or $(ANSWERS),$(error neither docker nor podman nor buildah answers))
IMAGE ?= novelsum-dagster:0.2.0
PROFILE ?= cpu
COMPOSE = docker compose --file docker/compose.yaml

image:
	$(ENGINE) build --file docker/Dockerfile --tag $(IMAGE) \
		--build-arg REVISION=$(shell git rev-parse --short HEAD) $(BUILD_ARGS) .
	docker/check-image $(ENGINE) $(IMAGE)

up: docker/secrets
	mkdir -p docker/pool
	$(COMPOSE) --profile $(PROFILE) up --build --detach
	@echo "http://127.0.0.1:3000 in a minute; new files in docker/pool start a run"

down:
	$(COMPOSE) --profile cpu --profile gpu down

# Others cannot enter the folder; the users in the containers can read the files.
docker/secrets:
	mkdir -m 700 $@
	for name in postgres_password s3_password; do \
		od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > $@/$$name && chmod 444 $@/$$name; \
	done

clean:
	rm -rf .venv demo site
