# Everything runs in .venv, made from what pyproject.toml names.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait should sleep: with other work on the machine, spinning ones are in its way.
export OMP_WAIT_POLICY ?= PASSIVE
# The environments here are for machines without a GPU.
export CDRL_CUDA ?= OFF
# The release that everything here is tested with; tests/install/torch_versions.py tests others.
TORCH ?= torch==2.13.0
# An index to take torch from, such as https://download.pytorch.org/whl/cpu, without CUDA's several GB.
TORCH_INDEX ?=
GPU_OUT ?= benchmarks/results/gpu
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
# What the C++ tests could not run need not be compiled for them.
AVX512 := $(if $(shell grep -m1 -o avx512f /proc/cpuinfo 2>/dev/null),ON,OFF)
NATIVE := setup.py CMakeLists.txt cdrl_fast/_extension.py $(shell find csrc -type f ! -name '*.md')

install-torch = $(BIN)/pip install --quiet '$(TORCH)' $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))

.PHONY: help demo docs test test-native lint bench slow kernels kernels-oldest install-matrix gpu gpu-tune gpu-dry-run clean

help: ## These targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1: \2/p' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Draw digits, train a model for about a minute, write demo/index.html
	$(BIN)/cdrl-fast demo --out demo

test: $(VENV)/.dev ## All tests that need no GPU, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --durations=20

test-native: $(VENV)/.dev ## The C++ kernels alone, under AddressSanitizer and UBSan
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/native -G Ninja -DCDRL_PYTHON=OFF -DCDRL_CUDA=OFF -DCDRL_TESTS=ON -DCDRL_SANITIZE=ON -DCDRL_AVX512=$(AVX512)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/native
	PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/native --output-on-failure

docs: $(VENV)/.dev ## The documentation, into build/site; links, anchors and the README's table checked
	$(BIN)/python benchmarks/table.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # --quiet would hide the warnings that strict counts

lint: $(VENV)/.dev ## Style, types, import order, wording
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/tools/wording.py

bench: $(VENV)/.dev ## The benchmarks and the README's table from them; eight minutes or more on two cores
	$(BIN)/python -m pytest benchmarks/ --benchmark-only
	$(BIN)/python benchmarks/table.py --write

kernels: $(VENV)/.dev ## Every GPU kernel compiled and read
	$(BIN)/python benchmarks/gpu/compile_kernels.py

kernels-oldest: $(VENV)/.dev ## The same by the oldest triton that may be installed
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/triton-oldest triton==3.6.0
	PYTHONPATH=build/triton-oldest $(BIN)/python benchmarks/gpu/compile_kernels.py

install-matrix: $(VENV)/.dev ## Wheels with and without compiler, CUDA and triton, used outside the tree
	env -u CDRL_CUDA $(BIN)/python tests/install/install_matrix.py

slow: $(VENV)/.dev kernels-oldest ## Slow tests and long campaigns, hours; results go to benchmarks/results/
	$(BIN)/python -m pytest -m slow
	$(BIN)/python benchmarks/quality/training_kills.py --kills 30 --iterations 1000 --out benchmarks/results/training-kills.json
	$(BIN)/python benchmarks/quality/training_quality.py --out benchmarks/results/training-quality.json

gpu: ## Build, tests, sanitizer and benchmarks on this machine's GPU, in under nine minutes
	$(PYTHON) benchmarks/gpu/check.py --out $(GPU_OUT) --commit "$(COMMIT)"

gpu-tune: ## This machine's fastest 3×3 convolutions into the library's table, in three minutes
	$(PYTHON) benchmarks/gpu/tune_conv3x3.py --commit "$(COMMIT)"

gpu-dry-run: $(VENV)/.dev ## What `make gpu` would run, built and found on a machine without a GPU
	$(BIN)/python benchmarks/gpu/check.py --out build/gpu-dry-run --dry-run

$(VENV)/.demo: pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(install-torch)
	$(BIN)/pip install --quiet -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(install-torch)
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build demo runs *.egg-info
