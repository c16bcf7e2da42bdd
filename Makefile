# Two commands need nothing before them: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

HARNESS := .venv-harness
HARNESS_PIP := $(HARNESS)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

# What `make bench` measures: on a GPU, make bench DEVICE=cuda SHAPES="llava-1.5-7b llava-next-7b qwen2.5-vl-7b".
DEVICE ?= cpu
SHAPES ?= small

.PHONY: help demo test test-harness bench lint format clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    install, then ask the bundled model a question with 64 of 576 visual tokens"
	@echo "make test    install, then run all tests"
	@echo "make test-harness  install beside lmms-eval, in an environment of its own, then run the tests that need it"
	@echo "make bench   install, then measure scoring, picking, whole requests and memory (SHAPES=small DEVICE=cpu)"
	@echo "make lint    install, then check style and types"
	@echo "make format  rewrite the code in the project's style"
	@echo "make clean   remove the environment and caches"

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || (echo "Python 3.10 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" && exit 2)
	@echo "creating $(VENV) (some minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@# torch by itself first: with its exact version given, the others do not choose a build of their own.
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/installed
	$(BIN)/zooprune ask

test: $(VENV)/installed
	$(BIN)/pytest

# lmms-eval pins and pulls much that nothing here needs, so it gets an environment of its own.
$(HARNESS)/installed: pyproject.toml constraints.txt recipes/lmms-eval-requirements.txt
	@echo "creating $(HARNESS) (some minutes the first time)"
	@$(PYTHON) -m venv $(HARNESS)
	@$(HARNESS_PIP) torch==2.13.0
	@$(HARNESS_PIP) -e '.[dev]' -r recipes/lmms-eval-requirements.txt
	@$(HARNESS_PIP) --no-deps lmms-eval==0.7.3
	@touch $@

test-harness: $(HARNESS)/installed
	$(HARNESS)/bin/pytest -m harness

bench: $(VENV)/installed
	$(BIN)/python benchmarks/selection.py --device $(DEVICE)
	$(BIN)/python benchmarks/sensitivity.py --device $(DEVICE)
	for shape in $(SHAPES); do \
	  $(BIN)/python benchmarks/end_to_end.py --shape $$shape --new-tokens 1 16 128 --device $(DEVICE) || exit 1; \
	  $(BIN)/python benchmarks/memory.py --shape $$shape --device $(DEVICE) || exit 1; \
	done

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(HARNESS) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
