# make run    install, fetch the default model, convert it once, serve it (API under /v1, page under /ui)
# make test   install what the tests need and run them
# make check  linters, types and import rules
# make clients  install the programs that editors use (Node.js 20 or newer is needed) and test with them
# make train-demo   align a 135M model on 48 problems, convert it and serve it: the tutorial in docs/training.md
# make gptq   install what `rrtf-convert gptq` needs; make auto-gptq: auto-gptq 0.7.1, in .venv-auto-gptq
# Both say what they install, and take TORCH like `make test`.
# Everything else lands in .venv; models land under RRTF_HOME (default: ~/.cache/rrtf).

PYTHON ?= python3
ARGS ?=
# The reference library of the tests. On Linux without a GPU the CPU build is a tenth of the size:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# auto-gptq has wheels for Python 3.10 and 3.11 only, and works with libraries of its own time only.
AUTO_GPTQ_PYTHON ?= python3.11
AUTO_GPTQ := .venv-auto-gptq

.PHONY: run train-demo test test-slow test-browser clients check format gptq auto-gptq clean

run: .venv/run.stamp
	$(BIN)/rrtf-serve $(ARGS)

# DEMO: the folder it works in. Stopped, the same command goes on.
DEMO ?= rrtf-demo
train-demo: .venv/train.stamp
	$(BIN)/rrtf-train run training/demo/run.toml -o $(DEMO)
	$(BIN)/rrtf-convert ct2 ./$(DEMO)/fit/last -o $(DEMO)/int8 --force
	$(BIN)/rrtf-serve --model ./$(DEMO)/int8 --served-name smollm2-135m-rrtf-demo $(ARGS)

test: .venv/dev.stamp
	$(BIN)/python -m pytest $(ARGS)

test-slow: .venv/dev.stamp
	$(BIN)/python -m pytest -m slow $(ARGS)

test-browser: .venv/dev.stamp
	$(BIN)/python -m pytest -m browser $(ARGS)

# CLIENTS: the folder they are installed into. RRTF_LLAMA_VIM: a clone of llama.vim, see tests/clients/README.md.
CLIENTS ?= .venv/clients
clients: $(CLIENTS)/done.stamp
	RRTF_CLIENTS='$(CLIENTS)' RRTF_LLAMA_VIM='$(RRTF_LLAMA_VIM)' $(BIN)/python -m pytest -m clients $(ARGS)

check: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

gptq: .venv/gptq.stamp

auto-gptq: $(AUTO_GPTQ)/done.stamp

clean:
	rm -rf .venv $(AUTO_GPTQ) build dist *.egg-info

.venv/created.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/run.stamp: .venv/created.stamp pyproject.toml constraints.txt
	@echo 'Installing (about 560 MB) into .venv ...'
	@$(PIP) install -q -e '.[ui]' -c constraints.txt
	@touch $@

.venv/train.stamp: .venv/run.stamp
	@echo 'Installing what training needs (1 GB with the CPU build of torch, several GB with CUDA) into .venv ...'
	@$(PIP) install -q $(TORCH)
	@$(PIP) install -q -e '.[ui,train]' -c constraints.txt
	@touch $@

# torch by itself and first: asked for by another package, pip may take a build of several gigabytes.
.venv/dev.stamp: .venv/created.stamp pyproject.toml constraints.txt
	@echo 'Installing what the tests need (1 GB with the CPU build of torch, several GB with CUDA) into .venv ...'
	@$(PIP) install -q $(TORCH)
	@$(PIP) install -q -e '.[dev]' -c constraints.txt
	@touch $@ .venv/run.stamp

# No install scripts: none of the packages needs its own.
$(CLIENTS)/done.stamp: .venv/dev.stamp tests/clients/package.json tests/clients/package-lock.json
	@node -e 'process.exit(process.versions.node.split(".")[0] < 20)' || { echo 'Node.js 20 or newer is needed, and npm (Debian: apt install nodejs npm)'; exit 1; }
	@echo 'Installing the clients (230 MB) into $(CLIENTS) ...'
	@mkdir -p '$(CLIENTS)'
	@cp tests/clients/package.json tests/clients/package-lock.json '$(CLIENTS)/'
	@npm ci --ignore-scripts --no-audit --no-fund --prefix '$(CLIENTS)'
	@$(PIP) install -q ollama==0.6.3
	@touch $@

.venv/gptq.stamp: .venv/dev.stamp
	@echo 'Installing gptqmodel, which is compiled here, and optimum into .venv: minutes ...'
	@$(PIP) install -q -e '.[gptq]' -c constraints.txt
	@touch $@

$(AUTO_GPTQ)/done.stamp:
	@$(AUTO_GPTQ_PYTHON) -c 'import sys; sys.exit(0 if sys.version_info[:2] in ((3, 10), (3, 11)) else "auto-gptq needs Python 3.10 or 3.11: make auto-gptq AUTO_GPTQ_PYTHON=...")'
	@echo 'Installing auto-gptq 0.7.1 and $(firstword $(TORCH)) into $(AUTO_GPTQ): minutes, 5.4 GB with the default CUDA build of torch ...'
	@echo '(TORCH=... chooses another build; auto-gptq loads models anywhere, but quantises on a CUDA device only.)'
	$(AUTO_GPTQ_PYTHON) -m venv $(AUTO_GPTQ)
	@$(AUTO_GPTQ)/bin/python -m pip --disable-pip-version-check install -q $(TORCH)
	@$(AUTO_GPTQ)/bin/python -m pip --disable-pip-version-check install -q $(firstword $(TORCH)) transformers==4.52.4 peft==0.14.0 auto-gptq==0.7.1
	@touch $@
