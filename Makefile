# `make` prints what there is to make. It needs a Python and nothing else of ours.
#
#   make test TOX_WITH=        plain tox, without uv, which does not read pip's settings
#   make benchmarks ARGS=...   arguments for the benchmarks; for `quick`, `reliability` and `browser`, pytest's
#
# One environment alone, and one test: .tools/bin/tox run -e newest-sqlite -- -k retry

.DEFAULT_GOAL := help
SHELL := /bin/sh

# The first Python that is new enough. Another one: make test PYTHON=/path/to/python
PYTHON ?= $(shell for python in python3 python python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && \
	{ echo $$python; break; }; done)

TOX_WITH ?= tox-uv
TOX = .tools/bin/tox

.PHONY: help
help: ## Print this.
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

.PHONY: setup
setup: .venv/ready ## Set up a checkout for work: .venv with all that the tests and tools need, and git's hooks.
	@! test -e .git || .venv/bin/pre-commit install

.PHONY: demo
demo: .venv/installed ## Play the life of a payment, on SQLite: one process, no server.
	.venv/bin/python manage.py demo

.PHONY: quick
quick: .tools/installed ## The inner loop, a little over a minute: the tests on SQLite, without campaigns and what starts processes.
	$(TOX) run -e quick $(if $(ARGS),-- $(ARGS))

.PHONY: test
test: .tools/installed ## Lint, types, package, docs, and all tests but the slow ones: the oldest of all on SQLite, the newest on PostgreSQL.
	$(TOX) run-parallel --parallel-no-spinner -m checks
	$(TOX) run -m test

.PHONY: corners
corners: .tools/installed ## The rest of CI: the slow tests (races, kills) on PostgreSQL and SQLite, the oldest on PostgreSQL, MariaDB.
	$(TOX) run -m corners

.PHONY: test-all
test-all: .tools/installed ## The whole matrix of Pythons, Djangos and databases.
	$(TOX) run

.PHONY: browser
browser: .tools/installed ## The admin in a real browser: needs Chromium.
	$(TOX) run -e browser $(if $(ARGS),-- $(ARGS))

.PHONY: docs
docs: .tools/installed ## The documentation as a site: build/site/index.html.
	$(TOX) run -e docs

.PHONY: screenshots
screenshots: .tools/installed ## Take the pictures of the admin in docs/images/ again: needs Chromium.
	EVENTLOGS_SCREENSHOTS=docs/images $(TOX) run -e browser -- tests/browser/test_screenshots.py

.PHONY: reliability
reliability: .tools/installed ## The long campaigns: races, kills, many events.
	$(TOX) run -e reliability $(if $(ARGS),-- $(ARGS))

.PHONY: benchmarks
benchmarks: .tools/installed ## Measure beside the limits of the database and beside other ways; ARGS=table writes docs/performance.md.
	$(TOX) run -e benchmarks $(if $(ARGS),-- $(ARGS))

.PHONY: lint
lint: .tools/installed ## Check the style of the code, and its types.
	$(TOX) run -e lint,types

.PHONY: format
format: .tools/installed ## Bring the code into its style.
	$(TOX) run -e format

.PHONY: clean
clean: ## Remove everything that was made here.
	rm -rf .venv .tools .tox .benchmarks docs/project docs/reference .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Environments. Each has a file that says it is complete, and is made again when its sources change.

.venv/installed: setup.cfg pyproject.toml
	@$(require-python)
	@test -d .venv || rm -f .venv
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/ready: .venv/installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1' # knows --group
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --group dev --editable '.[postgres,redis,cli,celery]'
	@touch $@

.tools/installed: Makefile
	@$(require-python)
	$(PYTHON) -m venv --clear .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check 'tox>=4.25' $(TOX_WITH)
	@touch $@

define require-python
test -n '$(PYTHON)' || { echo 'eventlogs needs Python 3.11 or newer, and none is on PATH.' >&2; exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo '$(PYTHON) lacks venv: on Debian and Ubuntu, install the package python3-venv.' >&2; exit 1; }
endef
