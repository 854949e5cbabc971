# make run    install, fetch the default model, convert it once, serve it (API under /v1, page under /ui)
# make test   install what the tests need and run them
# make check  linters, types and import rules
# Everything lands in .venv; models land under RRTF_HOME (default: ~/.cache/rrtf).

PYTHON ?= python3
ARGS ?=
# The reference library of the tests. On Linux without a GPU the CPU build is a tenth of the size:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run test test-slow test-browser check format clean

run: .venv/run.stamp
	$(BIN)/rrtf-serve $(ARGS)

test: .venv/dev.stamp
	$(BIN)/python -m pytest $(ARGS)

test-slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow $(ARGS)

test-browser: .venv/dev.stamp
	$(BIN)/python -m pytest -m browser $(ARGS)

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist *.egg-info

.venv/created.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/run.stamp: .venv/created.stamp pyproject.toml constraints.txt
	@echo 'Installing (about 560 MB) into .venv ...'
	@$(PIP) install -q -e '.[ui]' -c constraints.txt
	@touch $@

# torch by itself and first: asked for by another package, pip may take a build of several gigabytes.
.venv/dev.stamp: .venv/created.stamp pyproject.toml constraints.txt
	@echo 'Installing what the tests need (1 GB with the CPU build of torch, several GB with CUDA) into .venv ...'
	@$(PIP) install -q $(TORCH)
	@$(PIP) install -q -e '.[dev]' -c constraints.txt
	@touch $@ .venv/run.stamp
