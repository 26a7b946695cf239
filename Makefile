# Every target makes its own environment in .venv when needed. Variables:
#   PYTHON=python3.12      the interpreter that makes .venv (3.11 or newer)
#   VENV=DIR               another place for the environment; VENV= (empty): none, $(PYTHON) as it is
#   EXTRAS=test,examples   what `make test` installs; with `peers` the comparison with PyTorch runs too
#   PEERS=                 (empty) `make bench` without PyTorch
#   ARGS="-k conv"         handed to pytest (-n auto: on all cores), to the benchmark runner, to the demo or to the kernel report

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= test,examples
PEERS ?= peers
ARGS ?=

comma := ,
# The stamp of an environment with the extras $(1): its name holds them, so that each set is installed once.
stamp = $(VENV)/.installed-$(subst $(comma),-,$(1))
# CuPy where the kernel has NVIDIA's driver: with a newer one CUDA 12 works too.
GPU_EXTRA := $(if $(wildcard /proc/driver/nvidia/version /dev/nvidiactl /usr/lib/wsl/lib/libcuda.so.1),$(comma)cuda12)
BENCH_EXTRAS := examples$(if $(PEERS),$(comma)$(PEERS))

ifeq ($(strip $(VENV)),)
  RUN = PYTHONPATH=.path$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON)
  needs = .path/adjoint
else
  RUN = $(VENV)/bin/python
  needs = $(call stamp,$(1))
endif

define FIND_GPU
import ctypes, sys
count = ctypes.c_int(0)
try:
    driver = ctypes.CDLL("libcuda.so.1")
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
except OSError:
    sys.exit("no NVIDIA GPU: the CUDA driver (libcuda.so.1) is not on this machine")
if code or not count.value:
    sys.exit(f"no NVIDIA GPU: the CUDA driver is here but answers with error {code} and {count.value} devices")
endef
export FIND_GPU

.PHONY: help demo test test-gpu lint bench bench-gpu kernels clean gpu python
.DEFAULT_GOAL := help

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "  make %-10s %s\n", $$1, $$2 }'

demo: $(call needs,examples$(GPU_EXTRA)) ## train LeNet-5 on handwritten digits, draw what it learned (under a minute)
	$(RUN) examples/digits.py $(ARGS)

test: $(call needs,$(EXTRAS)) ## run the tests; nothing in them needs a GPU
	$(RUN) -m pytest $(ARGS)

test-gpu: gpu $(call needs,test$(comma)examples$(comma)cuda12) ## run the tests on this machine's GPU as well
	$(RUN) -m pytest $(ARGS)

lint: $(call needs,lint) .path/adjoint ## ruff and mypy
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	MYPYPATH=.path $(RUN) -m mypy -p adjoint

bench: $(call needs,$(BENCH_EXTRAS)) ## measure on the CPU, against PyTorch (PEERS= for ours alone)
	$(RUN) -m bench --device cpu $(if $(PEERS),--against torch) $(ARGS)

bench-gpu: gpu $(call needs,$(BENCH_EXTRAS)$(comma)cuda12) ## measure on this machine's GPU; results go to bench/results
	$(RUN) -m bench --device cuda $(if $(PEERS),--against torch) $(ARGS)

kernels: $(call needs,test) ## compile the CUDA kernels (no GPU needed), print registers and spills; ARGS=--report: their traffic
	$(RUN) -m adjoint.kernels $(ARGS)

clean: ## remove the environment, caches and everything that was built
	rm -rf .venv .path build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

gpu: python
	@$(PYTHON) -c "$$FIND_GPU"

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "adjoint needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one: make PYTHON=python3.12" >&2; exit 1; }

$(VENV)/.installed-%: pyproject.toml | python
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[$(subst -,$(comma),$*)]"
	@touch $@

# A folder in which this checkout is called `adjoint`, whatever its own name is.
.path/adjoint: | python
	@mkdir -p $(@D) && ln -sfn .. $@
