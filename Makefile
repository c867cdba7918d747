# `make demo` and `make test` each work as the first command on a fresh clone.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Workers that run tests side by side. For one test in a debugger: .venv/bin/pytest tests/...
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --no-loadscope-reorder

.PHONY: setup demo cluster cluster-stop test test-all quick lint format docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,dev]'
	@# The challenge's scorer needs a C compiler. Without it, its tests are skipped.
	-$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[scorer]'
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m infra.local.demo $(if $(DATA),--data $(DATA))

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
	test -x $(BIN)/mkdocs || $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf site .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
