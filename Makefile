# Two commands on a fresh machine with Python 3.11 or newer:
#   make demo    install, then adapt a pretrained vision transformer to a solved PDE
#   make test    install with the test tools, then run the tests (make test-fast: a selection;
#                make test-all: those that take long, too)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-fast lint types docs install clean

demo: $(VENV)/.installed
	$(BIN)/xmodal demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not long"

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not long and not network"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.installed-test
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/python -m mkdocs build --strict --quiet

install: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit('xmodal needs Python 3.11 or newer, this is ' + sys.version.split()[0] if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV)
