# The whole interface of a contributor. It needs Python 3.11 with its headers, make and a C++ compiler; everything else
# goes into .venv.
#
#   TORCH=cpu    (default) PyTorch's CPU wheel
#   TORCH=cuda   PyTorch's CUDA wheel, for a machine with NVIDIA GPUs; .venv remembers the choice
#   ARGS="…"     more arguments for `emuflow`, or for pytest
#   WORKERS=2    processes that share the tests of `make test` (WORKERS=0 for one that a debugger can stop)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= $(shell command -v python3.11 || echo python3)
TORCH ?= $(shell cat .venv/.torch 2>/dev/null || echo cpu)
ARGS ?=
WORKERS ?= 2
BUILD_ARGS ?=
IMAGES_TORCH := $(if $(filter file,$(origin TORCH)),cpu,$(TORCH))

TORCH_VERSION := 2.13.0
TORCH_INDEX := https://download.pytorch.org/whl/cpu
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
INPUTS := pyproject.toml serving/client/pyproject.toml constraints.txt
STAMP := .venv/.ready-$(TORCH)-$(shell cat $(INPUTS) | sha256sum | cut -c1-16)

.PHONY: help setup run test test-slow test-containers bench serve lint format images clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 18

run: setup ## retrain, benchmark, gate and promote on the built-in data (emuflow run --preset quickstart)
	$(BIN)/emuflow run --preset quickstart $(ARGS)

test: setup ## the test suite
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not containers" $(ARGS)

# Each of these takes all cores by itself.
test-slow: setup ## the tests that take minutes each
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: setup ## does the quickstart keep its promises over five seeds? (half an hour; ARGS="--json FILE")
	$(BIN)/python -m benchmarks.quickstart $(ARGS)

serve: setup ## serve the champion with Triton on this machine
	$(BIN)/emuflow serve $(ARGS)

lint: setup ## ruff (rules and format) and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup ## let ruff correct what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

images: ## build both images with podman or docker (BUILD_ARGS: arguments of the build)
	@TORCH=$(IMAGES_TORCH) $(PYTHON) -m infra.images.build $(BUILD_ARGS)

test-containers: setup ## build the images and run the pipeline in them (where podman or docker can)
	@$(BIN)/python -m tests.containers.run $(ARGS)

setup: $(STAMP) ## the environment in .venv, with DeepSpeed's operator compiled

# PyTorch goes first, from its CPU wheel where no GPU is wanted; DeepSpeed's installation then looks at it.
$(STAMP):
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (some minutes) ..."
	@$(PIP) setuptools wheel ninja
	@[ "$$(cat .venv/.torch 2>/dev/null || echo $(TORCH))" = $(TORCH) ] || $(BIN)/python -m pip uninstall --quiet --yes torch
	@if [ "$(TORCH)" = cuda ]; then $(PIP) torch==$(TORCH_VERSION); \
	else $(PIP) torch==$(TORCH_VERSION)+cpu 2>/dev/null || $(PIP) --extra-index-url $(TORCH_INDEX) torch==$(TORCH_VERSION)+cpu; fi
	@DS_BUILD_OPS=0 $(PIP) --no-build-isolation deepspeed
	@$(PIP) --no-build-isolation -e serving/client -e '.[local,dev]'
	@echo "Compiling DeepSpeed's communication operator ..."
	@$(BIN)/python -m components.train.prebuild > .venv/prebuild.log 2>&1 || { cat .venv/prebuild.log; exit 1; }
	@rm -f .venv/.ready-* && echo $(TORCH) > .venv/.torch && touch $@

clean: ## remove caches (not runs/, not .venv)
	rm -rf .pytest_cache .ruff_cache .hypothesis build *.egg-info serving/client/*.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
