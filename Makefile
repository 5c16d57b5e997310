# Each target works on a fresh clone: it creates the virtual environment, installs what it needs, and runs.
VENV ?= .venv
PYTHON ?= python3
ARGS ?=
PORT ?= 8000
MINUTES ?= 10
GPU_PYTHON ?= 3.12

# What is compiled once is not compiled again by each process of the tests.
export PYTHONDONTWRITEBYTECODE :=

COMMA := ,
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
SOURCES := pyproject.toml setup.cfg constraints.txt
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# pytest ends with 5 where no test is left, which is right where ARGS chose.
NONE = || [ $$? -eq $(if $(ARGS),5,0) ]
SPHINX := OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going --nitpicky -q -d docs/_build/doctrees

DEMO_READY := $(VENV)/.kornia-mvit-demo
EXPORT_READY := $(VENV)/.kornia-mvit-export
TEST_READY := $(VENV)/.kornia-mvit-test
DOCS_READY := $(VENV)/.kornia-mvit-docs

.PHONY: help environment demo browser-demo test fuzz test-long test-install notebooks docs gpu gpu-pack bench lint clean

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1@\2/p' Makefile | while IFS=@ read -r name text; do \
		printf '  make %-13s %s\n' "$$name" "$$text"; done
	@echo "  variables: PYTHON=$(PYTHON) creates the environment in VENV=$(VENV); ARGS= is passed to the program"

demo: $(DEMO_READY)  ## train MobileViT xxs on handwritten digits and plot predictions
	$(BIN)/kornia-mvit demo $(ARGS)

browser-demo: $(EXPORT_READY)  ## build the web page of examples/browser and serve it locally; ARGS= checkpoints, PORT= port
	$(BIN)/python examples/browser/build.py $(ARGS)
	$(BIN)/python examples/browser/serve.py --port $(PORT)

test: compiler lint  ## run the linters, then every test that takes seconds
	$(PYTEST) -n 2 $(ARGS)

fuzz: compiler $(TEST_READY)  ## run the property tests on random examples for MINUTES=10, or until one fails
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(MINUTES) -n 2 $(ARGS)

test-long: compiler $(TEST_READY)  ## run the tests that take minutes
	HYPOTHESIS_PROFILE=long $(PYTEST) -n 2 --dist loadscope -m "(long or cases) and not processes" -rs --durations=12 $(ARGS) $(NONE)
	$(PYTEST) -m "long and processes" -rs --durations=8 $(ARGS) $(NONE)

test-install: $(TEST_READY)  ## build the wheel and test it with torch and kornia alone, and with each extra
	$(PYTEST) -m install tests/test_install.py $(ARGS)

notebooks: $(DOCS_READY)  ## run and check the notebooks of examples; ARGS="--write NAME" rebuilds one
	$(PYTEST) -m notebooks tests/test_notebooks.py
	$(BIN)/python examples/notebooks.py $(ARGS)

environment: $(DOCS_READY)  ## create the environment with every extra; run it before parallel targets

docs: $(DOCS_READY)  ## build the documentation in docs/_build/html and test its examples
	$(SPHINX) -b html docs docs/_build/html
	$(SPHINX) -b doctest docs docs/_build/doctest

gpu:  ## on a machine with PyTorch and a GPU, without a network: test and measure on it, 6 minutes
	@if ls .gpu-pack/*.whl >/dev/null 2>&1; then \
		$(PYTHON) -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target .gpu-site .gpu-pack/*.whl; fi
	PYTHONPATH="$(CURDIR)/.gpu-site:$(CURDIR)" $(PYTHON) benchmarks/gpu.py $(ARGS)

gpu-pack: | $(BIN)/pip  ## put the wheels that `make gpu` needs beside PyTorch into .gpu-pack, for GPU_PYTHON=3.12
	rm -rf .gpu-pack
	$(BIN)/python -m pip download --quiet --constraint constraints.txt --no-deps --only-binary=:all: -d .gpu-pack \
		--python-version $(GPU_PYTHON) $(foreach tag,2_17 2_28 2_34,--platform manylinux_$(tag)_x86_64) \
		--platform manylinux2014_x86_64 kornia kornia_rs timm \
		hypothesis sortedcontainers pytest pluggy iniconfig packaging pygments pyyaml safetensors
	@du -sh .gpu-pack

bench: compiler $(TEST_READY)  ## run the short benchmarks against timm, transformers and Kornia, 10 minutes
	mkdir -p runs/bench
	$(BIN)/python benchmarks/inference.py --short --json runs/bench/inference.json --png runs/bench/inference.png
	$(BIN)/python benchmarks/inference.py --short --modes xxs --batches 1 --compiled \
		--json runs/bench/compiled.json --png runs/bench/compiled.png
	$(BIN)/python benchmarks/training_step.py --short --json runs/bench/training.json --png runs/bench/training.png
	$(BIN)/python benchmarks/memory.py --modes xxs --size 128 --json runs/bench/memory.json --png runs/bench/memory.png
	$(BIN)/python benchmarks/growth.py --short --json runs/bench/growth.json --png runs/bench/growth.png
	$(BIN)/python benchmarks/pipeline.py --repeats 5 --json runs/bench/pipeline.json

lint: $(TEST_READY)  ## run ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean:  ## remove build outputs and caches; the environment stays
	rm -rf build dist docs/_build docs/_generated docs/examples examples/browser/dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find kornia_mvit tests -name __pycache__ -type d -prune -exec rm -rf {} +

# torch.compile builds C++ as the tests run.
.PHONY: compiler
compiler: | $(BIN)/pip
	@command -v "$${CXX:-g++}" >/dev/null || { \
		echo "the tests need a C++ compiler: install g++ or clang++, or name one in CXX" >&2; exit 1; }
	@$(BIN)/python -c 'import os, sys, sysconfig; folder = sysconfig.get_path("include"); sys.exit(not os.path.exists(os.path.join(folder, "Python.h")) and "the tests need the headers of Python (python3-dev, python3-devel): no Python.h in " + folder)'

# pip goes into a new environment last: where it stands, the environment is whole.
$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "there is no $(PYTHON); name a Python 3.11 or newer, as in: make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python %d.%d; name a Python 3.11 or newer, as in: make demo PYTHON=python3.12" % sys.version_info[:2])'
	@echo "creating a virtual environment in $(VENV)"
	@$(PYTHON) -m venv "$(VENV)"

# What is installed is compiled by all cores, as some of it warns then, which would fail a test. Half of it nobody imports.
UNUSED := /(tests?|pip|debugpy)/|/transformers/models/(?!auto|mobilevit)|/executorch/(examples|backends/(?!xnnpack|transforms))|/moto/(?!core|s3|server|utilities|moto)
COMPILE := import compileall, re, sysconfig; compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0, rx=re.compile("$(UNUSED)"))

define install
	@echo "installing kornia-mvit[$(1)] and torch $(TORCH) into $(VENV); a first time downloads about 3 GB where torch comes with CUDA, as on Linux"
	@$(PIP) --editable '.[$(1)]'
	@$(BIN)/python -W ignore -c '$(COMPILE)'
endef

$(DEMO_READY): $(SOURCES) | $(BIN)/pip
	$(call install,train)
	@touch $@

$(EXPORT_READY): $(SOURCES) | $(BIN)/pip
	$(call install,train$(COMMA)export)
	@touch $(DEMO_READY) $@

$(TEST_READY): $(SOURCES) | $(BIN)/pip
	$(call install,train$(COMMA)export$(COMMA)dev)
	@touch $(DEMO_READY) $@

$(DOCS_READY): $(SOURCES) | $(BIN)/pip
	$(call install,train$(COMMA)export$(COMMA)dev$(COMMA)examples$(COMMA)docs)
	@touch $(DEMO_READY) $(EXPORT_READY) $(TEST_READY) $@
