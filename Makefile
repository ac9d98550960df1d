# Two commands on a fresh machine: `make demo` and `make test`. Both create .venv by themselves.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := $(VENV)/.installed-demo
TEST   := $(VENV)/.installed-test
DOCS   := $(VENV)/.installed-docs

.PHONY: demo test test-gpu lint format docs bench clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@echo "make demo    train a tokenizer and a DiT on OpenMoji, sample, evaluate, write a report (DEMO_MINUTES=10 scales it)"
	@echo "make test    run the test suite          make lint   check style and types"
	@echo "make bench   print the speed tables      make clean  remove .venv, build and demo output"
	@echo "make docs    build the site into build/site"
	@echo "make test-gpu   the tests that need a GPU (two of them for NCCL); 'make test' rehearses them on the CPU"

# A stamp is newer than setup.cfg once everything that setup.cfg names for it is installed.
$(VENV)/.installed-%: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

demo: $(DEMO)
	$(BIN)/python -m tcae_diffusers.training.demo $(DEMO_ARGS)

# Files whose tests fork children that train need a process in which nothing has trained yet: the second run.
test: $(TEST)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not fresh_process and not gpu" $(PYTEST_ARGS)
ifeq ($(PYTEST_ARGS),)
	grep --recursive --files-with-matches --include='test_*.py' mark.fresh_process tests \
		| xargs --max-args 1 --max-procs 2 $(BIN)/python -m pytest -m "not slow"
endif

test-gpu: $(TEST)
	$(BIN)/python -m pytest -m gpu -rs tests/gpu $(PYTEST_ARGS)

# A type checker, and what makes pages from docstrings, cannot see that the outer folders are subpackages: they are shown them as they are installed.
TYPES := build/types/tcae_diffusers
.PHONY: types
types:
	@rm -rf $(TYPES) && mkdir -p $(TYPES)
	@ln -s $(addprefix $(CURDIR)/,$(wildcard tcae_diffusers/*) pipelines training evaluation) $(TYPES)

lint: $(TEST) types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p tcae_diffusers

format: $(TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Links and anchors are checked: a broken one is an error.
docs: $(DOCS) types
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html"

bench: $(TEST)
	$(BIN)/python -m tcae_diffusers.training.bench $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist demo_output *.egg-info
