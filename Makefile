# Every target sets up what it needs; `make setup` is quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp

.PHONY: setup demo test bench soak lint lock clean

setup: $(STAMP)

$(STAMP): deploy/requirements/bootstrap.txt deploy/requirements/dev.txt deploy/kafka/jars.sha256 pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Sensorium needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r deploy/requirements/bootstrap.txt
	$(BIN)/uv pip install --require-hashes --python $(BIN)/python -r deploy/requirements/dev.txt
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python -e .
	$(BIN)/sensorium broker --fetch-only
	@touch $@

demo: setup
	$(BIN)/sensorium demo

test: setup
	$(BIN)/ruff check streams models tests
	$(BIN)/mypy
	$(BIN)/pytest tests/unit -q
	$(BIN)/pytest tests/integration tests/chaos -q

bench: setup
	$(BIN)/python -m tests.benchmarks

soak: setup
	SENSORIUM_SOAK=1 $(BIN)/pytest tests/chaos -q -s

lint: setup
	$(BIN)/ruff check streams models tests
	$(BIN)/mypy

# Pins are made anew from pyproject.toml; no index address is written into them.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --group dev --custom-compile-command "make lock" pyproject.toml -o deploy/requirements/dev.txt

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
