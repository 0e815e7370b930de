# make demo | test | lint | docs | help. Each sets up .venv (docs: .venv-docs) by itself, once; again when pyproject.toml,
# the constraints or PYTHON change.
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
WORKERS ?= 2
WORKDIR ?= runs/edm_digits

VENV := .venv
BIN := $(VENV)/bin
# The stamp's name holds what the environment was made with.
INSTALLED := installed-$(subst /,_,$(PYTHON))-$(or $(subst /,_,$(CONSTRAINTS)),newest)
STAMP := $(VENV)/$(INSTALLED)
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/$(INSTALLED)

.PHONY: help demo test lint docs
.DEFAULT_GOAL := help

help:
	@echo "make demo    train configs/edm_digits.py in WORKDIR ($(WORKDIR); resumed if it exists), sample, score"
	@echo "make test    run the tests; PYTEST_ARGS=\"tests/test_times.py -k edm\" for some, WORKERS=0 in one process"
	@echo "make lint    run ruff"
	@echo "make docs    build the documentation: docs/_build/html/index.html"
	@echo "Options: PYTHON=python3.12 for another Python, CONSTRAINTS= for the newest versions of everything."

demo: $(STAMP)
	$(BIN)/python experiments/train.py --config=configs/edm_digits.py --workdir=$(WORKDIR)
	$(BIN)/python experiments/evaluate.py --workdir=$(WORKDIR) --blocks=1
	@echo "Digits from seeds 0-99, one class a column: $(WORKDIR)/evaluation/images_heun_35.png"
	@echo "While it trained:                           $(WORKDIR)/samples/step_*.png"
	@echo "More: $(BIN)/python experiments/sample.py --workdir=$(WORKDIR) --seeds=0-63 --label=3 --guidance=1.5"

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

docs: $(DOCS_STAMP)
	JAX_PLATFORMS=cpu $(DOCS_VENV)/bin/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "The documentation: docs/_build/html/index.html"

# $(1): the folder of an environment, $(2): the extra that it is for.
define environment
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[$(2)]'
	@touch $@
endef

$(STAMP): pyproject.toml $(CONSTRAINTS)
	$(call environment,$(VENV),dev)

$(DOCS_STAMP): pyproject.toml $(CONSTRAINTS)
	$(call environment,$(DOCS_VENV),docs)
