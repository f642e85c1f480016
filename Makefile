# One command for each thing. Needs Python 3.11 or newer, make, and a network to the package index.
PYTHON ?= python3
BIN := .venv/bin
TOOLS := .venv/tools
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo dev test notebooks package long check export readme docs box dist audit licences

demo: .venv/installed  ## sample set, hand-built CNN, transfer learner, loss plots, predictions
	$(BIN)/gear-fastai demo

dev: .venv/installed-dev  ## .venv with all that development needs

test: .venv/installed-dev  ## everything, but what takes long
	$(BIN)/python tests/unchanged.py
	$(MAKE) -j 2 --output-sync=target notebooks package

notebooks: .venv/installed-dev
	env -u GEAR_DATA OMP_NUM_THREADS=1 GEAR_FASTAI_CACHE=$(abspath .venv/cache) $(BIN)/nbdev-test --n-workers 2

package: .venv/installed-dev
	OMP_NUM_THREADS=1 GEAR_FASTAI_CACHE=$(abspath .venv/cache) $(BIN)/python -m pytest -q tests --ignore tests/test_kill.py --ignore tests/test_distributed.py

long: .venv/installed-dev  ## training runs that are killed, and on several processes
	OMP_NUM_THREADS=1 GEAR_FASTAI_CACHE=$(abspath .venv/cache) $(BIN)/python -m pytest -q tests/test_kill.py tests/test_distributed.py

export: .venv/installed-dev  ## notebooks to modules, and clean
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export

check: .venv/installed-dev  ## one notebook: make check NB=nbs/03_cnn.ipynb
	OMP_NUM_THREADS=1 GEAR_FASTAI_CACHE=$(abspath .venv/cache) $(BIN)/nbdev-test $(NB)

readme: .venv/installed-dev  ## README.md from nbs/index.ipynb
	$(BIN)/python tests/readme.py

docs: .venv/installed-dev  ## the site, into _docs; nbdev gets Quarto if it is not there
	$(BIN)/nbdev-docs

dist: $(TOOLS)  ## sdist and wheel, checked; the wheel tried in an environment of its own
	rm -rf dist && $(TOOLS)/bin/python -m build -o dist
	$(TOOLS)/bin/twine check --strict dist/*
	$(PYTHON) -m venv --clear .venv/wheel && .venv/wheel/bin/pip install -q dist/*.whl
	cd .venv/wheel && bin/gear-fastai data sample drawn -n 1 && bin/gear-fastai predict drawn

audit: .venv/installed $(TOOLS)  ## known vulnerabilities of what is installed
	$(TOOLS)/bin/pip-audit --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

licences: .venv/installed-dev $(TOOLS)  ## .github/LICENCES.md, of what settings.ini requires of its users
	printf '# Licences of what gear_fastai requires\n\nMade by `make licences`.\n\n' > .github/LICENCES.md
	$(TOOLS)/bin/pip-licenses --python $(BIN)/python --from mixed --format markdown --with-urls --no-version --packages \
	  $$(sed -n '/^requirements/,/^app/p' settings.ini | grep -oE '[A-Za-z_-]+>=' | tr -d '>=') >> .github/LICENCES.md

box: .venv/installed-dev  ## the model in the box, anew: make box GEAR_DATA=photos GEAR_WILD=other-photos GEAR_OTHERS=other-things GEAR_WEIGHTS=of-the-teacher
	GEAR_DATA=$(abspath $(GEAR_DATA)) GEAR_WILD=$(abspath $(GEAR_WILD)) GEAR_OTHERS=$(abspath $(GEAR_OTHERS)) GEAR_WEIGHTS=$(abspath $(GEAR_WEIGHTS)) \
	  $(BIN)/nbdev-test nbs/tutorials/box.ipynb --flags real --save --cell-timeout 36000

.venv/installed: settings.ini setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@

$(TOOLS):
	$(PYTHON) -m venv $@ && $@/bin/pip install -q build twine pip-audit pip-licenses
