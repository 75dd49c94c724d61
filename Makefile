# Everything runs in .venv, made from what pyproject.toml names.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads that wait should sleep: with other work on the machine, spinning ones are in its way.
export OMP_WAIT_POLICY ?= PASSIVE
# The environments here are for machines without a GPU.
export CDRL_CUDA ?= OFF
# An index to take torch from, such as https://download.pytorch.org/whl/cpu, without CUDA's several GB.
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^ *"\(torch[<>=][^"]*\)",$$/\1/p' pyproject.toml)
GPU_OUT ?= benchmarks/results/gpu
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
# What the C++ tests could not run need not be compiled for them.
AVX512 := $(if $(shell grep -m1 -o avx512f /proc/cpuinfo 2>/dev/null),ON,OFF)
NATIVE := setup.py CMakeLists.txt $(shell find csrc -type f ! -name '*.md')

install-torch = $(if $(TORCH_INDEX),$(BIN)/pip install --quiet '$(TORCH)' --index-url $(TORCH_INDEX))

.PHONY: demo docs test test-native lint bench slow kernels kernels-oldest install-matrix checkerboard gpu-baseline gpu gpu-tune gpu-dry-run clean

demo: $(VENV)/.demo ## Draw digits, train a model for about a minute, write demo/index.html
	$(BIN)/cdrl-fast demo --out demo

test: $(VENV)/.dev ## All tests that need no GPU, on all cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --durations=20

test-native: $(VENV)/.dev ## The C++ kernels alone, under AddressSanitizer and UBSan
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake -S . -B build/native -G Ninja -DCDRL_PYTHON=OFF -DCDRL_CUDA=OFF -DCDRL_TESTS=ON -DCDRL_SANITIZE=ON -DCDRL_AVX512=$(AVX512)
	PATH="$(CURDIR)/$(BIN):$$PATH" cmake --build build/native
	PATH="$(CURDIR)/$(BIN):$$PATH" ctest --test-dir build/native --output-on-failure

docs: $(VENV)/.dev ## The documentation, into build/site; links and anchors checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(VENV)/.dev ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev ## The benchmarks, about eight minutes on two cores with AVX-512, longer elsewhere; the README's tables from them
	$(BIN)/python -m pytest benchmarks/ --benchmark-only
	$(BIN)/python scripts/benchmark_table.py --write

kernels: $(VENV)/.dev ## Every GPU kernel compiled and read
	$(BIN)/python scripts/compile_kernels.py

kernels-oldest: $(VENV)/.dev ## The same by the oldest triton that may be installed
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/triton-oldest triton==3.6.0
	PYTHONPATH=build/triton-oldest $(BIN)/python scripts/compile_kernels.py

install-matrix: $(VENV)/.dev ## Wheels with and without compiler, CUDA and triton, used outside the tree
	env -u CDRL_CUDA $(BIN)/python scripts/install_matrix.py

slow: $(VENV)/.dev kernels-oldest ## Slow tests and long campaigns, hours; results go to benchmarks/results/
	$(BIN)/python -m pytest -m slow
	$(BIN)/python scripts/training_kills.py --kills 30 --iterations 1000 --out benchmarks/results/training-kills.json
	$(BIN)/python scripts/training_quality.py --out benchmarks/results/training-quality.json

checkerboard: $(VENV)/.demo ## Train on the 2-D checkerboard and plot its density by level
	$(BIN)/python examples/checkerboard.py --out runs/checkerboard

gpu-baseline: ## Ceilings and eager baselines of this machine's GPU; needs torch and numpy alone
	$(PYTHON) scripts/gpu_baseline.py --out benchmarks/results/gpu-baseline.json

gpu: ## Build, tests, sanitizer and benchmarks on this machine's GPU, in under nine minutes
	$(PYTHON) scripts/gpu_check.py --out $(GPU_OUT) --commit "$(COMMIT)"

gpu-tune: ## This machine's fastest 3×3 convolutions into the library's table, in three minutes
	$(PYTHON) scripts/tune_conv3x3.py --commit "$(COMMIT)"

gpu-dry-run: $(VENV)/.dev ## What `make gpu` would run, built and found on a machine without a GPU
	$(BIN)/python scripts/gpu_check.py --out build/gpu-dry-run --dry-run

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
