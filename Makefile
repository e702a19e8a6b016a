# `make demo` and `make test` need only Python 3.11 or newer (with venv), and prepare the rest.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .venv-uv/bin/uv
PYTEST := -m pytest --numprocesses auto --dist worksteal
JS := tests/javascript
# `make test` runs the suite in parts, each in one process, which imports, collects and starts servers once.
PARTS := contract faults redis stores servers docs
PART_contract := tests/contract
PART_faults := tests/redis/test_faults.py
PART_redis := $(filter-out $(PART_faults),$(wildcard tests/redis/test_*.py))
PART_stores := tests/stores tests/sqlite tests/workers
PART_servers := tests/servers tests/clients
PART_docs := tests/docs
# Not even collected where they are not wanted, since what those import takes seconds.
WITHOUT_OUTSIDE := $(addprefix --ignore tests/,browser clients docs servers)
CORE := $(addprefix tests/,core stream stores run fastapi contract client)
# What touches asyncio, threads and processes: on every Python and event loop; but not what names look like in stores:
# no loop has a part in that.
MATRIX_LESS := not every_form and not the_head_is
MATRIX := $(addprefix tests/,stream run stores/test_memory_conformance.py stores/test_sqlite_conformance.py \
	stores/test_redis_conformance.py contract/test_life_drain.py contract/test_life_shutdown.py)
# What touches FastAPI, Starlette, uvicorn, pydantic, redis-py and httpx: on other versions of them.
VERSIONS := $(addprefix tests/,$(addprefix fastapi/test_,assets.py differential.py failures.py internals.py \
	starting_after.py transparent.py watch.py) $(addprefix contract/test_,faces_matrix.py faces_request.py http_openapi.py \
	wire_record.py) client/test_python_client.py redis/test_connections.py)
# What touches Redis itself: on other servers.
REDIS := $(addprefix tests/,stores/test_redis_conformance.py $(addprefix redis/test_,connections.py faults.py memory.py refusals.py))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Some machines are told to keep no bytecode: then every process of a test would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help install demo demo-redis test test-long lint format typecheck docs build js js-build cov part-rest $(PARTS:%=part-%) test-outside test-browser test-low test-matrix test-redis test-next bench bench-docs lock clean prepare prepare-matrix system-tools

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed ## make .venv, with the library and every tool in it

demo: .venv-demo/.installed ## start the example app on a free port
	@exec .venv-demo/bin/python -m example_app

demo-redis: .venv-demo/.installed ## start three workers of it, on Redis and behind nginx
	@bash tools/system-tools redis-server nginx:nginx-light
	@exec .venv-demo/bin/python -m example_app.workers

# Each prepares what it alone needs, while others run. The longest first, so that no core is idle at the end; but before
# them what needs no bytecode, which the first part makes for all.
test: $(VENV)/.installed ## run every check there is: what CI runs
	@bash tools/check js test-matrix part-rest part-contract part-faults part-redis part-stores part-servers test-browser \
		part-docs test-low typecheck build docs lint

test-long: ## what takes too long for every change: all combinations, more examples, benchmarks, other versions
	$(BIN)/python $(PYTEST) --hypothesis-profile long --timeout 1800 --override-ini faulthandler_timeout=3600 -m "long or not (outside or slow)"
	$(MAKE) --no-print-directory test-low VERSIONS="$(CORE)" LOW_ARGS="--numprocesses auto --dist worksteal"
	MATRIX_WITHOUT= bash tools/matrix --numprocesses auto --dist worksteal -m "not (outside or slow or long or servers)" $(CORE)
	$(MAKE) --no-print-directory test-redis

lint: $(VENV)/.installed ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(VENV)/.installed ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: $(VENV)/.installed ## mypy, strict
	$(BIN)/mypy

docs: $(VENV)/.installed ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

build: $(VENV)/.installed ## build the wheel and use it in a clean environment
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	$(UV) venv --quiet --python $(BIN)/python .venv-wheel
	sed -n 's/^\([a-z0-9._-]*==[^ ]*\).*/\1/p' requirements/demo.txt > .venv-wheel/constraints.txt
	$(UV) pip install --quiet --python .venv-wheel/bin/python --constraint .venv-wheel/constraints.txt dist/*.whl
	cd .venv-wheel && bin/python -I ../tools/smoke.py

js: $(VENV)/.installed $(JS)/node_modules/.installed ## JavaScript: types and tests, and whether static/ is built from its sources
	bash tools/node $(JS)/node_modules/.bin/tsc --project fastapi_resumable/static/src
	bash tools/node $(JS)/node_modules/.bin/tsc --project $(JS)
	bash tools/node node $(JS)/build.mjs --check
	cd $(JS) && PYTHON=$(CURDIR)/$(BIN)/python bash ../../tools/node \
		node --test --test-timeout=240000 --test-reporter=spec

js-build: $(JS)/node_modules/.installed ## build the JavaScript modules that the router serves
	bash tools/node node $(JS)/build.mjs

cov: $(VENV)/.installed system-tools test-outside test-browser ## the whole suite, most of it with coverage
	$(BIN)/coverage erase
	$(BIN)/coverage run $(PYTEST) -m "not (outside or slow or long)" $(WITHOUT_OUTSIDE)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

part-rest $(PARTS:%=part-%): part-%: $(VENV)/.compiled system-tools
	$(BIN)/python -m pytest -p no:xdist -m "not long" $(or $(PART_$*),$(REST))

REST := $(addprefix --ignore ,tests/browser tests/redis $(foreach part,$(filter-out faults redis,$(PARTS)),$(PART_$(part))))

test-outside: $(VENV)/.installed system-tools ## pages, clients, servers, faults
	$(BIN)/python $(PYTEST) -m "(outside or slow) and not (browser or long)"

test-browser: $(VENV)/.compiled $(JS)/node_modules/.installed system-tools ## what a browser does, one after the other in a single one
	$(BIN)/python -m pytest -p no:xdist -m "not long" tests/browser

test-matrix: $(VENV)/.installed prepare-matrix system-tools ## the core of the suite on every Python and event loop that there is
	MATRIX_WITHOUT=$(MATRIX_WITHOUT) bash tools/matrix -p no:xdist -m "not (slow or long)" -k "$(MATRIX_LESS)" $(MATRIX)

MATRIX_WITHOUT ?= $(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)-asyncio

test-redis: $(VENV)/.installed ## what speaks to Redis, on Redis 6.2 and 8 and on Valkey
	# Not all of these servers are built with TLS.
	bash tools/redis-servers $(BIN)/python $(PYTEST) -m "not (slow or long)" -k "not test_tls" $(REDIS)

test-next: .venv-uv/.installed system-tools ## the core of the suite on pre-releases of FastAPI, Starlette and pydantic
	rm -rf .venv-next
	$(UV) venv --quiet --python $(PYTHON) .venv-next
	$(UV) pip install --quiet --python .venv-next/bin/python --prerelease allow --requirement pyproject.toml \
		--extra client --extra redis --group tests
	.venv-next/bin/python tools/link.py
	$(UV) pip list --quiet --python .venv-next/bin/python | grep -E '^(fastapi|starlette|pydantic|uvicorn) '
	.venv-next/bin/python $(PYTEST) -m "not (outside or slow or long or servers)" $(CORE)

test-low: .venv-low/.installed system-tools ## what depends on other packages, on the lowest supported versions of them
	# Old versions of other packages leave connections to the garbage collector.
	.venv-low/bin/python -m pytest $(LOW_ARGS) -W ignore::pytest.PytestUnraisableExceptionWarning \
		-m "not (outside or slow or long or servers)" --ignore tests/fastapi/test_imports.py $(VERSIONS)

bench: $(VENV)/.installed ## what resumability costs, against a plain response: some tables, in three minutes
	@$(BIN)/python -m tests.benchmarks

bench-docs: $(VENV)/.installed ## measure everything anew, and update the page on performance: on a quiet machine
	@bash tools/system-tools redis-server valgrind
	$(BIN)/python -m tests.benchmarks --json tests/benchmarks/results/bench.json
	$(BIN)/python -m tests.benchmarks.micro --instructions --json tests/benchmarks/results/instructions.json
	$(BIN)/python -m tests.benchmarks.growth
	$(BIN)/python -m tests.benchmarks.plots
	$(BIN)/python -m tests.benchmarks.page

lock: .venv-uv/.installed ## pin the newest versions of all dependencies in requirements/
	PATH="$(CURDIR)/.venv-uv/bin:$$PATH" bash tools/lock

clean: ## remove all that the other targets made
	rm -rf .venv .venv-* .node $(JS)/node_modules build dist site htmlcov .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

prepare: $(VENV)/.compiled $(JS)/node_modules/.installed system-tools

# All that tests import, once: not by each of the processes that run them. The tests themselves will say what is wrong.
$(VENV)/.compiled: $(VENV)/.installed
	@flock tools/check sh -c '[ -e $@ ] || $(BIN)/python -m pytest --collect-only --quiet >/dev/null 2>&1; touch $@'

prepare-matrix: .venv-uv/.installed
	+@PYTHON=$(PYTHON) bash tools/matrix --prepare

system-tools:
	@bash tools/system-tools chromium-headless-shell redis-server nginx:nginx-light prometheus

$(JS)/node_modules/.installed: $(JS)/package-lock.json tools/node
	@echo 'Preparing $(JS)/node_modules ...'
	@cd $(JS) && flock package.json sh -c '[ node_modules/.installed -nt package-lock.json ] || \
		{ bash ../../tools/node npm ci --no-audit --no-fund --loglevel error && touch node_modules/.installed; }'

# uv makes an environment in seconds; pip, which every Python has, only brings uv.
.venv-uv/.installed: requirements/uv.txt
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed, with its venv module: make PYTHON=/path/to/python ...' >&2; exit 1; }
	@rm -rf .venv-uv
	@$(PYTHON) -m venv .venv-uv
	@.venv-uv/bin/python -m pip --disable-pip-version-check -qq install --require-hashes --requirement $<
	@touch $@

# One rule for the environments: $(1) its folder, $(2) the file in requirements/.
define environment
$(1)/.installed: requirements/$(2).txt .venv-uv/.installed
	@echo 'Preparing $(1) ...'
	@rm -rf $(1)
	@$$(UV) venv --quiet --python $$(PYTHON) $(1)
	@$$(UV) pip install --quiet --python $(1)/bin/python --require-hashes --no-deps --requirement $$<
	@$(1)/bin/python tools/link.py
	@touch $$@
endef
$(eval $(call environment,.venv,dev))
$(eval $(call environment,.venv-demo,demo))
$(eval $(call environment,.venv-low,lowest))
$(foreach version,11 12 13 14 15,$(eval $(call environment,.venv-3.$(version),tests)))
