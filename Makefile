# make demo | test | lint: each builds what it needs, .venv included.
#
#   make install PYTHON=python3.12
#   make install TORCH="torch torchvision"     newest torch; on Linux the registry's build for CUDA
#
# TORCH is installed first and left alone from then on.
#
#   make test PYTEST_ARGS="tests/ops -k scan" WORKERS=1     some tests; by default as many workers as cores

PYTHON ?= python3
TORCH ?= $(shell grep -E '^torch(vision)?==' constraints.txt)
EXTRAS ?= dev,metrics,export,plot
PYTEST_ARGS ?=
WORKERS ?= auto

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := $(VENV)/.kernels
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install demo test lint format clean

help:
	@grep -E '^#' Makefile | sed 's/^# \{0,1\}//'

install: $(STAMP) $(KERNELS)

$(STAMP): setup.py pyproject.toml requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt setuptools wheel Cython numpy packaging
	$(PIP) install $(TORCH)
	$(BIN)/python -c 'from importlib.metadata import distributions as d; \
	  have = {x.name.lower(): x.version for x in d() if x.name.lower() in ("torch", "torchvision", "triton")}; \
	  rest = [l for l in open("constraints.txt") if l.split("=")[0] not in have]; \
	  open("$(VENV)/constraints.txt", "w").write("".join(f"{k}=={v}\n" for k, v in have.items()) + "".join(rest))'
	$(PIP) install -c $(VENV)/constraints.txt --no-build-isolation basicsr==1.4.2
	$(PIP) install -c $(VENV)/constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	touch $@

$(KERNELS): $(STAMP) qmambair_basicsr/ops/build.py $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)
	@# pip hides what setup.py says about the kernels; this also rebuilds them after a change
	$(BIN)/python -W ignore -m qmambair_basicsr.ops.build --if-changed || echo 'The PyTorch path is used instead.'
	touch $@

demo: $(STAMP) $(KERNELS)
	$(BIN)/python -W ignore -m qmambair_basicsr.tools.demo

test: $(STAMP) $(KERNELS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 20 $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -W ignore -m qmambair_basicsr.tools.make_options --check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
