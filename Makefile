# Every target sets up what it needs, and is quick about it when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := deploy/requirements
RUNTIME := $(VENV)/.runtime-stamp
DEV := $(VENV)/.dev-stamp
KAFKA := $(VENV)/.kafka-stamp
INSTALL := $(BIN)/uv pip install --require-hashes --python $(BIN)/python

.PHONY: setup demo test lint unit integration bench soak lock clean
.NOTPARALLEL:

setup: $(DEV) $(KAFKA)

# What `sensorium` itself needs. The package is installed editable: it is this folder.
$(RUNTIME): $(LOCKS)/bootstrap.txt $(LOCKS)/runtime.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Sensorium needs Python 3.11 or newer: make setup PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r $(LOCKS)/bootstrap.txt
	$(INSTALL) -r $(LOCKS)/runtime.txt
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python -e .
	@touch $@

# The same versions, with the tools that tests, lint and benchmarks need beside them.
$(DEV): $(RUNTIME) $(LOCKS)/dev.txt
	$(INSTALL) -r $(LOCKS)/dev.txt
	@touch $@

$(KAFKA): $(RUNTIME) streams/kafka/data/jars.sha256
	$(BIN)/sensorium broker --fetch-only
	@touch $@

demo: $(RUNTIME) $(KAFKA)
	$(BIN)/sensorium demo

test: lint unit integration

lint: $(DEV)
	$(BIN)/ruff check streams models tests
	$(BIN)/ruff format --check streams models tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/deptry streams models
	$(BIN)/deptry tests --ignore DEP002,DEP004

unit: $(DEV)
	$(BIN)/pytest tests/unit -q

integration: $(DEV) $(KAFKA)
	$(BIN)/pytest tests/integration tests/chaos -q

bench: $(DEV) $(KAFKA)
	$(BIN)/python -m tests.benchmarks

soak: $(DEV) $(KAFKA)
	SENSORIUM_SOAK=1 $(BIN)/pytest tests/chaos -q -s

# Locks made anew from pyproject.toml. What is pinned stays as it is where it still fits; `make lock UPGRADE=--upgrade`
# takes the newest of everything. No index address is written into them.
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-emit-index-url --custom-compile-command "make lock" $(UPGRADE)
lock:
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --require-hashes -r $(LOCKS)/bootstrap.txt; }
	$(COMPILE) --group bootstrap -o $(LOCKS)/bootstrap.txt
	$(COMPILE) pyproject.toml -o $(LOCKS)/runtime.txt
	$(COMPILE) --group dev --constraint $(LOCKS)/runtime.txt pyproject.toml -o $(LOCKS)/dev.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find streams models tests -name __pycache__ -type d -prune -exec rm -rf {} +
