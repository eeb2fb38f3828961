# Two commands: `make demo` and `make test`. Both create the environment on first use and reuse it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml $(shell find steering samplers rewards configs -type f -not -name '*.pyc' 2>/dev/null)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow check format clean

demo: $(VENV)/.installed
	$(BIN)/steer demo --output outputs/demo

test: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not slow and not gpu"

test-slow: $(VENV)/.tested
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "slow and not gpu"

check: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.tested
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) outputs build dist .pytest_cache .mypy_cache .ruff_cache

# The dependencies follow pyproject.toml alone; the package itself is installed again after any change.
$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet .
	touch $@

$(VENV)/.extras: pyproject.toml $(VENV)/.core
	$(BIN)/pip install --quiet ".[test,metrics]"
	touch $@

$(VENV)/.installed: $(VENV)/.core $(SOURCES)
	$(BIN)/pip install --quiet --no-deps --force-reinstall .
	touch $@

$(VENV)/.tested: $(VENV)/.extras $(VENV)/.installed
	touch $@
