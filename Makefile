# One command a chore. `make chat` and `make test` need Python >= 3.11, a C++20 compiler and make.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NATIVE := $(shell find native -name '*.cc' -o -name '*.h') CMakeLists.txt pyproject.toml
CXX_FILES := $(shell git ls-files 'native/*.cc' 'native/*.h' 'tests/*.cc')
MARKDOWN := README.md docs/*.md
WHEEL_TAG = $(shell ls build | grep '^cp' | head -n 1)

.PHONY: chat test test-full check fix bench sanitize wheel nano-score clean

chat: $(VENV)/.installed  ## talk to the embedded model; PROMPT="..." answers once
	@$(BIN)/aperto chat nano $(if $(PROMPT),--prompt '$(subst ','\'',$(PROMPT))' </dev/null)

test: $(VENV)/.dev  ## what CI runs; under 15 minutes on 2 cores
	$(BIN)/python -m pytest -m "not long and not weights"

test-full: $(VENV)/.dev  ## everything, the long tests included
	$(BIN)/python -m pytest -m "not weights"

check: $(VENV)/.dev  ## style, types, layers, and documents that must match the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/python scripts/check_isa_symbols.py build/$(WHEEL_TAG)
	$(BIN)/python -m nanobind.stubgen --quiet --recursive -m aperto._native -O build/stubs
	diff -r build/stubs/_native src/aperto/_native
	$(BIN)/cog --check $(MARKDOWN)

fix: $(VENV)/.dev  ## repair what `make check` can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)
	$(BIN)/python -m nanobind.stubgen --quiet --recursive -m aperto._native -O src/aperto
	$(BIN)/cog -r $(MARKDOWN)

bench: $(VENV)/.installed  ## this machine's limits and how close the engine comes; MODEL=...
	$(BIN)/aperto bench $(or $(MODEL),nano)

sanitize: $(VENV)/.dev  ## the native tests under address, undefined-behaviour and thread sanitizers
	bash scripts/sanitize.sh

wheel: $(VENV)/.build-tools  ## dist/*.whl
	$(PIP) wheel --no-deps --no-build-isolation -w dist .

nano-score: $(VENV)/.dev  ## score the embedded model on its held-out files
	$(BIN)/python recipes/nano/score.py

clean:
	rm -rf build dist $(VENV)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "aperto needs Python 3.11 or newer; found " + sys.version.split()[0] + "; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build-tools: constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt scikit-build-core nanobind cmake ninja
	@touch $@

$(VENV)/.installed: $(NATIVE) | $(VENV)/.build-tools
	@echo "Building aperto (a minute or two the first time) ..."
	$(PIP) install -c constraints.txt --no-build-isolation --editable .
	@touch $@

# gpt-oss states Python >= 3.12, but the one module that serves as an oracle runs on 3.11.
$(VENV)/.dev: $(VENV)/.installed constraints.txt
	$(PIP) install -c constraints.txt --no-build-isolation --editable '.[dev]'
	$(PIP) install --no-deps --ignore-requires-python gpt-oss==0.0.9
	@touch $@
