# One command for each thing. Needs Python 3.11 or newer, make, and a network to the package index.
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo test export readme box

demo: .venv/installed  ## sample set, hand-built CNN, transfer learner, loss plots, predictions
	$(BIN)/gear-fastai demo

test: .venv/installed-dev  ## everything that CI checks
	$(BIN)/python tests/unchanged.py
	env -u GEAR_DATA OMP_NUM_THREADS=1 GEAR_FASTAI_CACHE=$(abspath .venv/cache) $(BIN)/nbdev-test --n-workers 2
	OMP_NUM_THREADS=1 GEAR_FASTAI_CACHE=$(abspath .venv/cache) $(BIN)/python -m pytest -q tests

export: .venv/installed-dev  ## notebooks to modules, and clean
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export

readme: .venv/installed-dev  ## README.md from nbs/index.ipynb
	$(BIN)/python tests/readme.py

box: .venv/installed-dev  ## the model in the box, anew: make box GEAR_DATA=photos GEAR_WILD=other-photos GEAR_OTHERS=other-things
	GEAR_DATA=$(abspath $(GEAR_DATA)) GEAR_WILD=$(abspath $(GEAR_WILD)) GEAR_OTHERS=$(abspath $(GEAR_OTHERS)) \
	  $(BIN)/nbdev-test nbs/tutorials/box.ipynb --flags real --save --cell-timeout 36000

.venv/installed: settings.ini setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@
