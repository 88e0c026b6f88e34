# make demo   install into .venv (first time) and run the demo: a report in runs/demo/
# make test   the same, and run every check and test
# PYTHON=/path/to/python3.11 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# make test-minimums   a fast part of the tests with the oldest dependencies that are allowed

.PHONY: demo test test-minimums install lint clean

demo: $(INSTALLED)
	$(BIN)/diffusion-var demo --config configs/digits.yaml --overwrite

test: $(INSTALLED) lint
	$(BIN)/python -m pytest --numprocesses=auto

# A fast part of the tests with the oldest versions that pyproject.toml allows (PyTorch's, of gigabytes, excepted).
test-minimums: $(INSTALLED)
	$(BIN)/python scripts/test_minimums.py

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
