# One target per task, see CONTRIBUTING.md. Needs make, Python 3.11 or newer and access to the package index.
PYTHON ?= python3
BIN := .venv/bin
TOOLS := .venv/tools
CACHE := GEAR_FASTAI_CACHE=$(abspath .venv/cache)
PYTEST := OMP_NUM_THREADS=1 $(CACHE) $(BIN)/python -m pytest -q
LONG := tests/test_kill.py tests/test_distributed.py tests/test_bulk.py
NOTICE := $(abspath .venv/notice)
CONSTRAINTS ?= -c constraints.txt
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo dev test notebooks package long check export readme docs bundled-model bench-peers dist audit licenses lock

demo: .venv/installed  ## draw photos, train a custom CNN and a transfer learner, plot the losses, predict
	$(BIN)/gear-fastai demo

dev: .venv/installed-dev  ## set up .venv for development

test: .venv/installed-dev  ## all checks and tests but the long ones; the last line says if no browser was found
	$(BIN)/python tests/unchanged.py
	@rm -f $(NOTICE)
	@$(MAKE) --no-print-directory -j 2 --output-sync=target notebooks package
	@test ! -e $(NOTICE) || cat $(NOTICE)

notebooks: .venv/installed-dev  ## run all notebooks
	env -u GEAR_DATA OMP_NUM_THREADS=1 $(CACHE) $(BIN)/nbdev-test --n-workers 2

package: .venv/installed-dev  ## run the tests in tests/ but the long ones
	GEAR_NOTICE=$(NOTICE) $(PYTEST) tests $(LONG:%=--ignore %)

long: .venv/installed-dev  ## kill and resume training and bulk runs; train on several processes
	$(PYTEST) $(LONG)

export: .venv/installed-dev  ## clean the notebooks and write the modules
	$(BIN)/nbdev-clean
	$(BIN)/nbdev-export

check: .venv/installed-dev  ## run one notebook: make check NB=nbs/03_cnn.ipynb
	OMP_NUM_THREADS=1 $(CACHE) $(BIN)/nbdev-test $(NB)

readme: .venv/installed-dev  ## render README.md from nbs/index.ipynb
	$(BIN)/python tests/readme.py

docs: .venv/installed-dev  ## build the site in _docs; nbdev installs Quarto if it is missing
	$(BIN)/nbdev-docs

bundled-model: .venv/installed-dev  ## rebuild models/gear from the folders GEAR_DATA, GEAR_OUTDOOR and GEAR_OOD
	$(BIN)/nbdev-test nbs/benchmarks/bundled_model.ipynb --flags real --save --cell-timeout 0

bench-peers: .venv/peers/installed .venv/peers-autogluon/installed  ## compare with other libraries; PEERS="--only fastai": one
	rm -rf build && .venv/peers/bin/pip install -q --no-deps .
	.venv/peers/bin/python nbs/benchmarks/peers/bench_peers.py $(PEERS)

dist: $(TOOLS)  ## build and check sdist and wheels; try the wheels in new environments
	rm -rf dist build serving/build && $(TOOLS)/bin/python -m build -o dist
	$(TOOLS)/bin/python -m build -w -o dist serving
	$(TOOLS)/bin/twine check --strict dist/*
	for name in gear_fastai gear_fastai_predict; do \
	  $(PYTHON) -m venv --clear .venv/$$name && .venv/$$name/bin/pip install -q dist/$$name-*.whl || exit 1; done
	cd .venv && gear_fastai/bin/gear-fastai data sample gear_fastai/drawn -n 1
	cd .venv && for name in gear_fastai gear_fastai_predict; do $$name/bin/gear-fastai predict gear_fastai/drawn || exit 1; done

audit: .venv/installed $(TOOLS)  ## look for known vulnerabilities in the installed packages
	$(TOOLS)/bin/pip-audit --path $$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")

licenses: .venv/installed-dev $(TOOLS)  ## list the licenses of the required packages in .github/LICENSES.md
	printf '# Licenses of the packages that gear_fastai requires\n\nMade by `make licenses`.\n\n' > .github/LICENSES.md
	$(TOOLS)/bin/pip-licenses --python $(BIN)/python --from mixed --format markdown --with-urls --no-version --packages \
	  $$(sed -n '/^requirements/,/^app/p' settings.ini | grep -oE '[A-Za-z_-]+>=' | tr -d '>=') >> .github/LICENSES.md

lock: .venv/installed-dev  ## upgrade the packages in .venv, and write their releases to constraints.txt
	$(BIN)/python -m pip install -q --upgrade --upgrade-strategy eager -e '.[dev]'
	(head -n 1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable) > .venv/lock
	mv .venv/lock constraints.txt && touch .venv/installed .venv/installed-dev

.venv/installed: settings.ini setup.py pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e .
	touch $@

.venv/peers/installed: nbs/benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv/peers
	.venv/peers/bin/pip install -q -r $<
	touch $@

.venv/peers-autogluon/installed: nbs/benchmarks/peers/requirements-autogluon.txt
	$(PYTHON) -m venv .venv/peers-autogluon
	.venv/peers-autogluon/bin/pip install -q -r $<
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install -q $(CONSTRAINTS) -e '.[dev]'
	touch $@

$(TOOLS):
	$(PYTHON) -m venv $@ && $@/bin/pip install -q build twine pip-audit pip-licenses
