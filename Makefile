# `make demo` and `make test` each work as the first command on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
# What the demo needs; and with what the tests need.
DEMO_READY := .venv/.demo-ready
READY := .venv/.ready
# The build of torch: cpu, cu130, ...; by default the one for this machine. See infra/install.py.
export TORCH

# Added to the selection of tests; empty for `make test-all`.
ONLY := and not slow

.PHONY: setup demo cluster cluster-stop test test-all test-clusters test-servers quick lint format docs clean

setup: $(READY)

$(DEMO_READY): pyproject.toml constraints.txt infra/install.py
	$(PYTHON) infra/install.py local serve
	touch $(DEMO_READY)

$(READY): $(DEMO_READY)
	$(PYTHON) infra/install.py local serve dev
	@# The challenge's scorer needs a C compiler. Without it, its tests are skipped.
	-$(PYTHON) infra/install.py scorer
	touch $(READY)

demo: $(DEMO_READY)
	$(BIN)/python -m infra.local.demo $(if $(DATA),--data $(DATA)) $(if $(KEEP),--keep)

cluster: $(READY)
	$(BIN)/python -m infra.local.background start

cluster-stop: $(READY)
	$(BIN)/python -m infra.local.background stop

# The tests with Ray clusters, those with an S3 server or a browser and all others, side by side.
test: lint
	$(MAKE) --no-print-directory -j3 test-clusters test-servers quick

test-all:
	$(MAKE) --no-print-directory test ONLY=

test-clusters: $(READY)
	$(BIN)/pytest -m "cluster $(ONLY)"

test-servers: $(READY)
	$(BIN)/pytest -m "(integration or browser) and not cluster $(ONLY)"

quick: $(READY)
	$(BIN)/pytest -m "not integration and not cluster and not browser $(ONLY)"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The pages of docs/ and an API reference as a site in site/; a dead link fails it.
docs: $(READY)
	test -x $(BIN)/mkdocs || $(PYTHON) infra/install.py docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf site .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
