# `make demo` and `make test` each work as the first command on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
# What the demo needs; and with what the tests need.
DEMO_READY := .venv/.demo-ready
READY := .venv/.ready
# The build of torch: cpu, cu130, ...; by default the one for this machine. See infra/install.py.
export TORCH

# Workers that run tests side by side. For one test in a debugger: .venv/bin/pytest tests/...
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: setup demo cluster cluster-stop test test-all quick lint format docs clean

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

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

quick: $(READY)
	$(BIN)/pytest -m "not integration and not cluster and not browser"

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
