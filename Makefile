# make run   set up and run the main job on the bundled data (DATA=shuttle: on another)
# make test  set up and run every check
VENV   ?= .venv
PYTHON ?= python3
DATA   ?= dimensions
PY     := $(VENV)/bin/python
# Any later build will do; on Linux the newest brings gigabytes of CUDA libraries.
TORCH  ?= torch==2.13.0
EXTRAS := dask,mqtt,mysql,onnx,optuna,postgres,service,skops,torch

.PHONY: setup run test lint native clean

$(VENV)/.run: pyproject.toml setup.py $(wildcard libdetect/*.[ch] libdetect/python/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PY) -m pip install --quiet $(TORCH)
	$(PY) -m pip install --quiet --editable '.[test,$(EXTRAS)]'
	@touch $@

setup: $(VENV)/.run

run: $(VENV)/.run
	$(PY) examples/run.py --data $(DATA)

test: $(VENV)/.test lint
	$(PY) -m pytest -n 2

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Rebuild the native core in place, for work on the C sources.
native:
	$(PYTHON) setup.py --quiet build_ext --inplace

clean:
	rm -rf build dist *.egg-info anomaly/*.so
