PYTHON ?= $(or $(shell command -v python3.11),python3)
DATA ?= digits
BIN := .venv/bin
CODE := clients services proto deploy helm tests examples benchmarks

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-fast test-long test-reliability test-helm test-observability lint format stubs docs bench learning reliability constraints

help: ## Show what can be made.
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

venv: .venv/.installed ## Install everything into .venv (again only after pyproject.toml or constraints.txt changed).

demo: .venv/.installed ## Train with and without selection through a local service (DATA=digits or fashion-mnist).
	$(BIN)/python -m examples.demo --data $(DATA)

test: .venv/.installed ## Run the tests, all but those that take half a minute or more each.
	$(BIN)/python -m pytest -m "not ray and not long" -n 2 --dist loadfile --max-worker-restart=3
	$(BIN)/python -m pytest -m "ray and not long"

test-fast: .venv/.installed ## Run the tests that need neither Ray nor patience.
	$(BIN)/python -m pytest -m "not ray and not slow and not long"

test-long: .venv/.installed ## Run the others: images' build steps, two nodes, the rendered chart, metrics and traces on Ray.
	$(BIN)/python -m pytest -m long --ignore=tests/reliability

test-reliability: .venv/.installed ## Do every proof of docs/reliability.md in its short form: processes killed and hung for ten minutes.
	$(BIN)/python -m pytest tests/reliability

test-helm: .venv/.installed ## Prove the chart: every values file, Kubernetes and helm; the rendered pods run.
	$(BIN)/python -m pytest tests/helm

test-observability: .venv/.installed ## Prove metrics, rules, alerts and dashboards against a real Prometheus.
	$(BIN)/python -m pytest tests/observability

lint: .venv/.installed ## Check style, types, directions of imports, the contract and its stubs.
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint proto
	$(BIN)/buf format proto --diff --exit-code
	$(BIN)/python proto/generate.py --check

format: .venv/.installed ## Format code and contract, and mend what can be mended.
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)
	$(BIN)/buf format proto --write

stubs: .venv/.installed ## Generate the stubs of proto/ again.
	$(BIN)/python proto/generate.py

docs: .venv/.installed ## Write again what is made from code: settings, metrics, dashboards, the chart's values.
	$(BIN)/preceptor config > deploy/config.yaml
	$(BIN)/python -m deploy.dashboards
	$(BIN)/python helm/schema.py
	$(BIN)/python helm/readme.py

bench: .venv/.installed ## Measure, and write the results into benchmarks/results/.
	$(BIN)/python -m benchmarks

learning: .venv/.installed ## Do what is missing of docs/results.md: arms trained at a ladder of budgets. Takes hours.
	$(BIN)/python -m benchmarks.learning

reliability: .venv/.installed ## Prove everything that docs/reliability.md promises, and write its table. Takes hours.
	$(BIN)/python -m tests.reliability

prove-%: .venv/.installed
	$(BIN)/python -m tests.reliability $*

constraints: ## Pin the newest releases that work together into constraints.txt.
	rm -rf .venv && $(PYTHON) -m venv .venv && $(BIN)/pip install -q -e '.[dev]'
	{ head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//'; } > .venv/constraints.txt
	mv .venv/constraints.txt constraints.txt && touch .venv/.installed

# The stamp is written last: without it, what lies in .venv was cut off, and is not built upon.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Preceptor needs Python 3.11 or newer; '$(PYTHON)' is not. Say 'make PYTHON=/path/to/python3.11 ...'." >&2; exit 1; }
	@[ -e $@ ] || rm -rf .venv
	@rm -f $@
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
