# All targets use the project's own virtual environment; `make demo` and `make test` create it.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# `make setup TORCH_INDEX=<index>` installs torch from that index, for example one of PyTorch's CPU or CUDA indexes.
TORCH_INDEX ?=
TORCH := 2.13.0
STAMP := $(VENV)/.estep-ready

.PHONY: setup demo test integrations gpu lint check docs dist try-dist bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt scripts/install_torch.sh scripts/install_vllm.sh scripts/install_llama_cpp.sh
	$(PYTHON) -m venv $(VENV)
	sh scripts/install_torch.sh $(BIN)/python $(TORCH) $(TORCH_INDEX)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[report,dev,docs,api]'
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[gym]' || \
	  echo "note: reasoning-gym could not be installed (it needs a C compiler), so the tasks gym/... are not available"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]' || \
	  echo "note: Ray could not be installed (it has no wheel for this platform), so cluster=... is not available"
	sh scripts/install_vllm.sh $(BIN)/python
	sh scripts/install_llama_cpp.sh $(BIN)/python
	touch $@

demo: setup
	$(BIN)/estep demo

test: setup
	$(BIN)/python -m pytest

gpu: setup
	$(BIN)/python -m pytest -m gpu tests/gpu

# Integrations whose dependencies conflict with those in constraints.txt: an environment on top of the project's own, in
# which the other versions come first.
integrations: setup
	$(PYTHON) -m venv $(VENV)-integrations
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  `$(VENV)-integrations/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'`/zz-estep.pth
	$(VENV)-integrations/bin/python -m pip install --quiet -e '.[trackio,mlflow,inspect]'
	$(VENV)-integrations/bin/python -m pytest tests/tracking tests/report/test_inspect.py

lint: setup
	$(BIN)/ruff check src tests benchmarks scripts examples
	$(BIN)/ruff format --check src tests benchmarks scripts examples
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	$(BIN)/python -m pytest -m 'not slow'

# The site is written to site/. `.venv/bin/mkdocs serve` shows it, and changes as the documents change.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: setup
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

# Minutes, and gigabytes: installs the wheel in an empty environment, and runs the demo with few questions.
try-dist: dist
	sh scripts/try_wheel.sh $(PYTHON) $(TORCH) $(TORCH_INDEX)

bench: setup
	$(BIN)/python benchmarks/e_step.py
	$(BIN)/python benchmarks/m_step.py

clean:
	rm -rf $(VENV) site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
