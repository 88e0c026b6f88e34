# make demo   install into .venv (first time) and run the demo: a report in runs/demo/
# make test   the same, and run every check and test
# make docs   the same, and build the documentation site into build/site
# make notebooks   run the notebooks, and keep their pictures
# make dist   a wheel and a source distribution in dist/, looked at as an index would
# PYTHON=/path/to/python3.11 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# make test-minimums   a fast part of the tests with the oldest dependencies that are allowed

.PHONY: demo test test-minimums docs notebooks dist install lint clean

demo: $(INSTALLED)
	$(BIN)/diffusion-var demo --overwrite

test: $(INSTALLED) lint
	$(BIN)/python -m pytest --numprocesses=auto

# A fast part of the tests with the oldest versions that pyproject.toml allows (PyTorch's, of gigabytes, excepted).
test-minimums: $(INSTALLED)
	$(BIN)/python scripts/test_minimums.py

# Warnings are errors: a link that leads nowhere, a public name without a page, a docstring that does not render.
docs: $(INSTALLED)
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --keep-going --quiet -b html docs build/site

notebooks: $(INSTALLED)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/run_notebooks.py

dist: $(INSTALLED)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, but '$(PYTHON)' is not that (or is missing)."; \
	  echo "Install one, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || { \
	  rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' does not work here. On Debian or Ubuntu: sudo apt install python3-venv"; \
	  echo "Or take another Python: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; \
	  echo "Or do without: pip install -e '.[dev]' && diffusion-var demo && pytest"; exit 1; }
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .minimums dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
