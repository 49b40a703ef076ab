# Two commands on a fresh machine: `make demo` and `make test`. Needs git, Python 3.11 or 3.12, an index.
# `make demo ARGS=--keep` leaves the endpoint running.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-with-ray test-without-ray check slow bench format clean

demo: $(STAMP)
	$(BIN)/python -m jobs.demo $(ARGS)

# Tests on a Ray cluster wait a lot: those without one run beside them.
test: $(STAMP)
	$(MAKE) --jobs 2 test-with-ray test-without-ray

test-with-ray test-without-ray: $(STAMP)
	$(BIN)/python -m pytest -m "$(subst test-with-ray,ray,$(subst test-without-ray,not ray,$@)) and not slow and not gpu"

slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m tests.benchmarks

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The constraints pin what was tested; they leave torch to your index, so that GPU machines get theirs.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo,dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
