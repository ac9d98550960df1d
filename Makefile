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
	@echo "make demo    train a tokenizer and a DiT on OpenMoji, sample, evaluate, write a report (DEMO_MINUTES=20 trains twice as long)"
	@echo "make test    run the test suite          make lint   check style and types"
	@echo "make bench   print the speed tables      make clean  remove .venv, build and demo output"
	@echo "make test-versions   the tests that depend on torch, diffusers, transformers and accelerate, with their lowest and newest"
	@echo "make docs    build the site into build/site"
	@echo "make test-gpu   the tests that need a GPU (two of them for NCCL); 'make test' rehearses them on the CPU"

# A stamp is newer than setup.cfg once everything that setup.cfg names for it is installed.
$(VENV)/.installed-%: setup.cfg pyproject.toml
	$(BIN)/python -c 'import sys, pip; assert sys.version_info >= (3, 11)' 2> /dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

demo: $(DEMO)
	$(BIN)/python -m tcae_diffusers.training.demo $(DEMO_ARGS)

# Files whose tests fork children that train need a process in which nothing has trained yet: the second run.
# GPUs are hidden: children cannot be forked from a process that uses one, and results are compared with a CPU's.
test: export CUDA_VISIBLE_DEVICES =
test: $(TEST)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow and not fresh_process and not gpu" $(PYTEST_ARGS)
ifeq ($(PYTEST_ARGS),)
	grep --recursive --files-with-matches --include='test_*.py' mark.fresh_process tests \
		| xargs --max-args 1 --max-procs 2 $(BIN)/python -m pytest -m "not slow"
endif

# With the lowest versions that setup.cfg allows and the newest that resolve, each in an environment of its own (7 GB each);
# made anew, since what resolves changes. The sharded tests fork children that train: a process for each file.
VERSIONED := tests/models tests/pipelines tests/trainer tests/training/test_train_dit.py tests/training/test_train_tcae.py
SHARDED   := tests/invariant/test_dit_sharded.py tests/invariant/test_tokenizer_sharded.py
.PHONY: test-versions
test-versions: versions-lowest versions-newest

.PHONY: versions-lowest versions-newest
versions-lowest versions-newest: export CUDA_VISIBLE_DEVICES =
versions-lowest versions-newest: versions-%:
	rm -rf build/versions/$* && mkdir -p build/versions
	$(PYTHON) tests/packaging/lowest_versions.py > build/versions/lowest.txt
	: > build/versions/newest.txt
	$(PYTHON) -m venv build/versions/$*
	build/versions/$*/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint build/versions/$*.txt --editable '.[test]'
	build/versions/$*/bin/python -m pip list | grep --extended-regexp '^(torch|diffusers|transformers|accelerate) '
	build/versions/$*/bin/python -m pytest --numprocesses 2 --dist loadfile \
		-m "not slow and not fresh_process and not gpu" $(VERSIONED)
	for file in $(SHARDED); do build/versions/$*/bin/python -m pytest -m "not slow" $$file || exit 1; done

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
