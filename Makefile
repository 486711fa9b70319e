PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
STAMP  := $(VENV)/.installed
BIN    := $(VENV)/bin
SMAT   := $(BIN)/smat
QUICK  := recipes/quickstart

export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help venv quickstart test test-slurm lint format bench docs clean-quickstart

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

# The stamp is newer than pyproject.toml exactly when the environment holds what it asks for.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

venv: $(STAMP) ## make .venv and install smat with what its tests need

quickstart: $(STAMP) ## the whole chain in miniature on embedded data (minutes, no network); again = continues
	$(SMAT) data synthetic --out data/quickstart
	$(SMAT) pretrain $(QUICK)/pretrain.yaml --resume
	$(SMAT) train $(QUICK)/pretrained.yaml --resume
	$(SMAT) train $(QUICK)/pmf.yaml --resume
	$(SMAT) train $(QUICK)/smat.yaml --resume
	$(SMAT) eval runs/quickstart/pretrained runs/quickstart/pmf --adapt proto
	$(SMAT) eval runs/quickstart/smat --adapt proto --adapt flip
	$(SMAT) sweep tau $(QUICK)/smat.yaml --values 0.5,0.9 --jobs 2 threads=1 train.steps=80 train.valid_every=80 train.groups.masks.lr=0.1 method.sparsity.lr=0.5 eval.episodes=15 eval.adapt=[proto]
	$(SMAT) report runs/quickstart/* --out report/quickstart

clean-quickstart: ## remove what quickstart made (data, runs, report)
	rm -rf data/quickstart runs/quickstart report/quickstart

test: lint ## ruff, mypy, pytest
	$(BIN)/python -m pytest -n $(JOBS)

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slurm: $(STAMP) ## the cluster launcher against a real Slurm on this machine (as root; apt-get install slurm-wlm munge)
	$(BIN)/python -m pip install --quiet -e '.[dev,cluster]'
	$(BIN)/python -m pytest tests/launch/test_slurm.py -rs

format: $(STAMP) ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measured speed, one script per question
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(STAMP) ## docs/cli from each --help, data/README.md, and the site in build/site
	SMAT_NO_PLUGINS=1 $(BIN)/python -m smatcli.cli.docs docs/cli
	$(BIN)/python -m smatcli.cli.datasets_page data/README.md
	@if test -x $(BIN)/mkdocs; then NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict && echo "build/site/index.html"; \
	else echo "no mkdocs here, so no site: $(BIN)/python -m pip install -e '.[docs]'"; fi
