# Everything a user types. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXPERIMENT ?= map
MINUTES ?= 9

# Kernels that every x86-64 has, and one thread: not those that torch and MKL pick for this processor.
KERNELS := MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=1
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: gpu help install reproduce reproduce-headline reproduce-all test test-kernels lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 22

install: $(VENV)/.installed ## a virtual environment with the tested versions

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[all,test,lint]' -c constraints.txt
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # on all cores; pip compiles on one
	touch $@

reproduce: install ## the main job: data, training, evaluation, figure and table (EXPERIMENT=name)
	$(BIN)/jest reproduce $(EXPERIMENT)

reproduce-headline: install ## every run, control and seed behind the committed figure
	$(BIN)/jest reproduce $(EXPERIMENT) --headline

reproduce-all: install ## every experiment in experiments/, all seeds, in order of worth
	$(BIN)/jest reproduce all --headline

gpu: install ## one GPU: selection and training steps at the paper's size, to results/local/gpu
	code=75; while [ $$code -eq 75 ]; do \
	  $(BIN)/python -m tools.gpu_lab run selection train --out .data/gpu/out --minutes $(MINUTES); \
	  code=$$?; done; exit $$code
	$(BIN)/python -m tools.gpu_lab collect .data/gpu/out/results.tar.gz --out results/local/gpu

test: install ## the test suite, on up to 4 cores
	$(PYTEST)

test-kernels: install ## the numeric tests again, as another processor would compute them
	$(KERNELS) $(PYTEST) -m numeric

lint: install ## ruff and mypy
	$(BIN)/ruff check jestcli tests tools
	$(BIN)/mypy jestcli tools

clean: ## remove runs and decoded data (keeps the environment)
	rm -rf runs .data results/local
