# Every target builds what it needs from a fresh clone: a virtual environment in .venv with the pinned packages.
BUNDLE ?= prostate_mr_trus_weak_ddf
PYTHON ?= python3
COVERAGE ?=
LOWEST_PYTHON ?= python3.10
VENV ?= .venv
BIN := $(CURDIR)/$(VENV)/bin
NIIVUE := 0.69.0
RUNTIME := $(VENV)/.runtime
STAMP := $(VENV)/.installed
# Python compiles what it imports. Compiling everything would take as long as the rest of the installation.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Each worker has half of the tests, in their order: few fixtures are set up by both. The faster one then helps the other.
PYTEST := -m pytest -n 2 --dist worksteal
RUN := cd bundles/$(BUNDLE) && $(BIN)/python -m monai.bundle run

# Images of Docker often set it. As nothing is compiled at the installation, each process would compile PyTorch anew.
unexport PYTHONDONTWRITEBYTECODE

# Tests run several at a time: threads that wait for others have to sleep. A training has the machine to itself: there it
# is a quarter faster to spin for some microseconds first.
test test-slow test-slurm test-label lowest bench: export OMP_WAIT_POLICY := passive
demo weights: export GOMP_SPINCOUNT := 2000

.DEFAULT_GOAL := help
.PHONY: help bundles demo test test-slow test-slurm test-label test-zoo lowest lint docs bench peers weights niivue clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

# What a run needs, and what development needs besides.
$(RUNTIME): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	@touch $@

$(STAMP): $(RUNTIME)
	$(INSTALL) -e ".[dev,bench]"
	@touch $@

demo: $(RUNTIME) ## train on phantoms, register held-out pairs, show the improvement (minutes; BUNDLE=name)
	@echo "Phantoms, a training and an evaluation: 5 to 15 minutes of CPU time, which the cores share"
	$(RUN) training --config_file "['configs/train.json','configs/variants/demo.json']"
	$(RUN) --config_file "['configs/train.json','configs/variants/demo.json','configs/evaluate.json']"
	@echo "Tables and pictures: bundles/$(BUNDLE)/output/demo/evaluation (summary.png, cases.csv, case*.png)"

test: $(STAMP) ## run the tests (COVERAGE=--cov also measures coverage; fails below what pyproject.toml asks for)
	$(BIN)/python $(PYTEST) -m "not slow" $(COVERAGE)

test-slow: $(STAMP) ## run the slow tests: several processes, other bundles, resumed trainings, benchmarks, memory (minutes)
	$(BIN)/python $(PYTEST) -m slow

test-slurm: $(STAMP) ## run studies on a Slurm of one node, as root (apt-get install slurm-wlm munge; minutes)
	REGZOO_SLURM=1 tests/tools/study/one_node_slurm.sh $(BIN)/python -m pytest tests/tools/study/test_study_on_slurm.py

test-label: ## run the tests against a MONAI Label server, in a separate environment (.venv-label)
	PYTHON=$(PYTHON) tests/monai_label/make_environment.sh .venv-label
	$(CURDIR)/.venv-label/bin/python $(PYTEST) tests/monai_label

test-zoo: $(STAMP) ## run the packaged bundles in an environment with only the packages that they ask for (.venv-zoo; minutes)
	REGZOO_ZOO_ENVIRONMENT=.venv-zoo $(BIN)/python -m pytest tests/tools/test_empty_environment.py

# What old versions deprecate does not matter: the newest ones say what has to change.
lowest: ## run the tests with the lowest versions that pyproject.toml allows (.venv-lowest; LOWEST_PYTHON=python3.10)
	$(LOWEST_PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt -e ".[dev]"
	.venv-lowest/bin/python $(PYTEST) -m "not slow" -W ignore::DeprecationWarning -W ignore::FutureWarning $(TESTS)

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP) ## build the documentation site into site/; fails at a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

bench: $(STAMP) ## time our parts against MONAI's in the same process
	$(BIN)/python benchmarks/run.py

# FireANTs asks for an old SimpleITK; NiftyReg is compiled, and left out where that fails.
peers: $(STAMP) ## run other registration tools beside ours, in an environment of their own (.venv-peers; hours)
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers_requirements.txt
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps fireants==1.5.0
	-CMAKE_POLICY_VERSION_MINIMUM=3.5 .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check niftyreg==1.5.70rc1
	$(BIN)/python benchmarks/peers.py $(PEERS)

ON_PATIENTS := hippocampus_mr_weak_ddf
weights: $(RUNTIME) ## train the released weights on phantoms, resuming if stopped (an hour on two cores; BUNDLE=name)
	$(if $(filter $(ON_PATIENTS),$(BUNDLE)),$(error The weights of $(BUNDLE) are from patients: see its docs/README.md))
	$(RUN) training --config_file configs/train.json --output_dir output/weights
	$(RUN) --config_file "['configs/train.json','configs/evaluate.json']" --output_dir output/weights
	cp bundles/$(BUNDLE)/output/weights/model.pt bundles/$(BUNDLE)/models/model.pt

# A test compares it with the hash of this release; a new release changes both, and the version in the file of the license.
niivue: ## fetch the viewer of --outputs viewer from npm again
	curl --fail --silent --location https://registry.npmjs.org/@niivue/niivue/-/niivue-$(NIIVUE).tgz \
		| tar -xzO package/dist/niivue.umd.js | gzip -9n > common/regzoo/report/viewer_files/niivue.umd.js.gz

bundles: ## write the files that all bundles share into each of them, from LICENSE and bundle_files/
	@for bundle in bundles/*/; do cp LICENSE "$$bundle" && cp -R bundle_files/. "$$bundle"; done

clean: ## remove what demo, training and tests wrote (not the virtual environment)
	rm -rf bundles/*/output bundles/*/data benchmarks/data site .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache
