PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
TESTS  ?=
STAMP  := $(VENV)/.installed
BIN    := $(VENV)/bin
SMAT   := $(BIN)/smat
QUICK  := recipes/quickstart

export PIP_NO_INPUT := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help venv quickstart test test-python test-min test-slurm lint format bench docs clean-quickstart

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

# The stamp is newer than pyproject.toml if and only if the environment is up to date.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

venv: $(STAMP) ## create .venv with smat and everything its tests need

quickstart: $(STAMP) ## run the whole pipeline on small generated data (minutes); run it again to resume
	$(SMAT) data synthetic --out data/quickstart
	$(SMAT) pretrain $(QUICK)/pretrain.yaml --resume
	$(SMAT) train $(QUICK)/pretrained.yaml --resume
	$(SMAT) train $(QUICK)/pmf.yaml --resume
	$(SMAT) train $(QUICK)/smat.yaml --resume
	$(SMAT) eval runs/quickstart/pretrained runs/quickstart/pmf --adapt proto
	$(SMAT) eval runs/quickstart/smat --adapt proto --adapt flip
	$(SMAT) sweep tau $(QUICK)/smat.yaml --values 0.5,0.9 --jobs 2 threads=1 train.steps=80 train.valid_every=80 train.groups.masks.lr=0.1 method.sparsity.lr=0.5 eval.episodes=15 eval.adapt=[proto]
	$(SMAT) report runs/quickstart/* --out report/quickstart

clean-quickstart: ## delete the data, runs and report of quickstart
	rm -rf data/quickstart runs/quickstart report/quickstart

test: lint ## run ruff, mypy and pytest (TESTS=tests/cli for a part)
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

test-python: ## run pytest on another interpreter, in an environment of its own: make test-python PYTHON=python3.12
	$(MAKE) VENV=.venv-$(notdir $(PYTHON)) venv
	.venv-$(notdir $(PYTHON))/bin/python -m pytest -n $(JOBS) $(TESTS)

test-min: ## run pytest with the lowest declared version of every dependency, in .venv-min
	test -x .venv-min/bin/python || $(PYTHON) -m venv .venv-min
	$(PYTHON) .ci/lowest.py > .venv-min/lowest.txt
	.venv-min/bin/python -m pip install --quiet -c .venv-min/lowest.txt -e '.[dev]'
	.venv-min/bin/python -m pytest -n $(JOBS) $(TESTS)

lint: $(STAMP) ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slurm: $(STAMP) ## test the cluster launcher with a real Slurm on this machine (as root; apt-get install slurm-wlm munge)
	$(BIN)/python -m pytest tests/launch/test_slurm.py -rs

format: $(STAMP) ## fix and format the sources with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## run every benchmark
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(STAMP) ## write docs/cli from the help texts, data/README.md, and the site into build/site
	SMAT_NO_PLUGINS=1 $(BIN)/python -m smatcli.cli.docs docs/cli
	$(BIN)/python -m smatcli.cli.datasets_page data/README.md
	@if test -x $(BIN)/mkdocs; then NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict && echo "build/site/index.html"; \
	else echo "skipped the site: mkdocs is not installed ($(BIN)/python -m pip install -e '.[docs]')"; fi
