# sealpoint: every task of development and installation. `make help` lists them.
# On a fresh Debian machine, as root, each of them sets up what it needs by itself, and keeps it in this directory.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
unexport PYTHONPATH PYTHONHOME

PREFIX ?= /opt/sealpoint
BINDIR ?= /usr/local/bin
# More options for pytest: make test ARGS="-k rekey -x"
ARGS ?=
# How many tests run at once, each file's one after another. One: make test WORKERS= ARGS="--pdb -k rekey"
WORKERS ?= --dist loadfile --no-loadscope-reorder --tx "3*popen//python=$(CURDIR)/scripts/test-worker"
# How many of those with CRIU: one after another. As many as of the others: make test CRIU_WORKERS=same (docs/adr/0058)
CRIU_WORKERS ?=

PYTHON := .venv/bin/python
# Where CI is set, failed tests are tried once more.
PYTEST := $(if $(CI),scripts/pytest-twice $(PYTHON),$(PYTHON) -m pytest)

.PHONY: help
help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: owner dev ## a process with a secret is dumped, sealed, searched for its secret, and restored
	@$(PYTHON) scripts/demo.py $(ARGS)

# Root does not run what others can change: says how to go on.
.PHONY: owner
owner:
	@scripts/check-owner

# --- Set-up: instant when it is there already. ---

.PHONY: dev
dev: venv criu ## set up .venv (Python, tools) and .criu (a CRIU that runs here); changes nothing else

.PHONY: venv
venv:
	@scripts/setup-venv
# As pip does for what it installs: where Python may not write (PYTHONDONTWRITEBYTECODE) every start would compile anew.
	@$(PYTHON) -m compileall -q src

.PHONY: criu
criu:
	@scripts/get-criu .criu

.PHONY: lock
lock: venv ## choose the newest versions of all dependencies; commit requirements/ afterwards
	@$(PYTHON) scripts/lock

# Not part of `dev`: it takes a minute, and 0.8 GB in .vm.
.PHONY: vm
vm: ## set up .vm, the virtual machine of the tests with container engines
	@scripts/vm-build .vm

# --- Checks. ---

.PHONY: test
test: owner dev test-tools ## run all tests that need no virtual machine
	@scripts/run-tests $(PYTHON) '$(WORKERS)' '$(if $(filter same,$(CRIU_WORKERS)),$(WORKERS),$(CRIU_WORKERS))' $(ARGS)

# Not part of `dev`: some 400 MB of packages of the system, for a few tests.
.PHONY: test-tools
test-tools:
	@scripts/get-test-tools

# In one process and without CRIU, so that all of it is counted. Of checkpoint that is what needs no process: dumps and
# restores run in processes of their own, and CRIU's tests are what proves them.
COVERAGE := -m "not slow and not criu and not vm and not fuzz and not bundle and not services" --cov-branch --cov-report=term:skip-covered
.PHONY: coverage
coverage: venv ## measure how many branches of format, keys (at least 95 %) and checkpoint (66 %) their tests take
	@$(PYTHON) -m pytest $(COVERAGE) tests/format tests/keys \
		--cov=sealpoint.format --cov=sealpoint.keys --cov-fail-under=95 $(ARGS)
	@$(PYTHON) -m pytest $(COVERAGE) tests/checkpoint tests/store tests/test_api.py tests/test_api_misuse.py \
		--cov=sealpoint.checkpoint --cov-fail-under=66 $(ARGS)

# Not part of `dev`: servers that are downloaded and kept in the cache of this user.
.PHONY: services
services: venv
	@scripts/get-services

.PHONY: test-services
test-services: owner dev services ## run the tests that talk to real servers: buckets, registries
	@SEALPOINT_REQUIRE_SERVICES=1 $(PYTEST) -m services $(ARGS)

.PHONY: test-vm
test-vm: vm venv ## run the tests that need the virtual machine
	@scripts/get-services cri || echo 'test-vm: there will be no tests of the CRI' >&2
	@scripts/test-vm $(ARGS)

.PHONY: test-mutants
test-mutants: dev test-tools ## take promised checks out of a copy of the code, one at a time: the tests must notice
	@$(PYTHON) -m tests.mutants.run $(ARGS)

.PHONY: test-zdtm
test-zdtm: owner dev vm ## run CRIU's own tests with stock CRIU and through the drop-in; --selected: those of CI
	@$(PYTHON) -m tests.zdtm.side_by_side $(ARGS)

.PHONY: test-bundle
test-bundle: dev test-tools ## make the self-contained bundle and run it where nothing is installed
	@$(PYTEST) -m bundle $(ARGS)

.PHONY: test-fast
test-fast: venv ## run the tests that need neither CRIU nor much time
	@$(PYTHON) -m pytest -m "not slow and not criu and not vm and not fuzz and not bundle and not services" $(ARGS)

.PHONY: lint
lint: venv ## check style, types, layers and the scripts of the shell
	@failed=; \
	check() { "$$@" || failed="$$failed $$1"; }; \
	export PATH="$$PWD/.venv/bin:$$PATH"; \
	check ruff check; \
	check ruff format --check; \
	check mypy; \
	check lint-imports --no-cache --no-logo; \
	scripts=$$(grep -lE '^#!.*(bash|/sh)$$' .ci/run $$(find scripts tests -type f -not -name '*.pyc')); \
	for file in $$scripts; do check bash -n "$$file"; done; \
	if [ -x .venv/bin/shellcheck ]; then check shellcheck --exclude=SC1091 $$scripts; fi; \
	[ -z "$$failed" ] || { echo "lint failed:$$failed"; exit 1; }

.PHONY: fmt
fmt: venv ## format the code and repair what can be repaired
	@.venv/bin/ruff check --fix-only
	@.venv/bin/ruff format

.PHONY: bench
bench: owner dev ## measure against stock CRIU
	@$(PYTHON) -m bench $(ARGS)

# --- Installation for all users. ---

.PHONY: bundle
bundle: venv ## make dist/sealpoint-VERSION-linux-ARCH.tar.zst, which runs on any distribution with nothing installed
	@$(PYTHON) scripts/bundle

.PHONY: deb
deb: venv ## make dist/sealpoint_VERSION_ARCH.deb, which holds the bundle
	@scripts/deb

.PHONY: image
image: venv ## make dist/sealpoint-VERSION-linux-ARCH.oci.tar, an OCI image that holds the bundle; needs no daemon
	@$(PYTHON) scripts/image

.PHONY: man
man: venv ## write the manual pages into build/man
	@$(PYTHON) scripts/command-pages --man build/man

.PHONY: release
release: venv ## make wheel, sdist, SBOM and checksums of this version in dist/VERSION, if it is ready for a release
	@$(PYTHON) scripts/release $(ARGS)

.PHONY: install
install: owner venv ## install into PREFIX (/opt/sealpoint), with a link in BINDIR (/usr/local/bin)
	@scripts/install "$(PREFIX)" "$(BINDIR)"

.PHONY: uninstall
uninstall: ## remove what `make install` made
	@scripts/install --uninstall "$(PREFIX)" "$(BINDIR)"

.PHONY: clean
clean: ## remove all that was made here, .venv and .criu included
	rm -rf .venv .criu .criu.tmp .vm .vm.tmp .services build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
