# What people type: `make demo`, `make serve`, `make loadtest`, `make test`, `make lint`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
# Apart from the rest: Locust changes how sockets and threads work in its process.
LOADTEST := .venv-loadtest
CLIENTS := .venv-clients
CHART := .venv-chart
BIN := $(VENV)/bin

.PHONY: demo test lint serve loadtest clients chart setup clean lock

demo: setup
	@$(BIN)/python -m examples.demo

serve: setup
	@$(BIN)/python -m examples.serve

# In two processes; tests/conftest.py says which has what.
test: $(VENV)/.dev
	@$(BIN)/python -m pytest --numprocesses 2

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# Puts a short load on a running octet, by users of Locust, and writes loadtest.html: make loadtest URL=... MODEL=...
loadtest: setup $(LOADTEST)/.run
	@$(BIN)/python -m loadtests.users --python $(LOADTEST)/bin/python $(if $(URL),--url $(URL)) $(if $(MODEL),--model $(MODEL)) \
		$(if $(USERS),--users $(USERS)) $(if $(ROWS),--rows $(ROWS)) $(if $(SAMPLES),--samples $(SAMPLES)) \
		$(if $(SHAPE),--shape $(SHAPE)) $(if $(HEADER),--header "$(HEADER)")

# KServe's client, for its tests.
clients: $(CLIENTS)/.run

# Helm and the schemas of Kubernetes, for the tests of the chart.
chart: $(CHART)/.run

setup: $(VENV)/.run

$(VENV)/.run: requirements.lock pyproject.toml
	@$(PYTHON) scripts/check_python.py
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "octet: installing into $(VENV) (a minute or two the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	@touch $@

.venv-%/.run: requirements-%.lock
	@$(PYTHON) -m venv $(@D)
	@echo "octet: installing into $(@D)"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes $(ANYWAY) --requirement $<
	@touch $@

# Helm's package runs on Python 3.11, though it does not say so.
$(CHART)/.run: private ANYWAY := --ignore-requires-python

# Writes the lock files anew from pyproject.toml; needs uv.
lock:
	uv pip compile pyproject.toml --extra demo --group build --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet -o requirements.lock
	uv pip compile pyproject.toml --extra demo --group dev --constraint requirements.lock --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet -o requirements-dev.lock
	uv pip compile --group pyproject.toml:loadtest --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet -o requirements-loadtest.lock
	uv pip compile --group pyproject.toml:clients --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet -o requirements-clients.lock
	uv pip compile --group pyproject.toml:chart --universal --python-version 3.12 --generate-hashes --no-header --no-annotate --quiet -o requirements-chart.lock

clean:
	rm -rf $(VENV) $(LOADTEST) $(CLIENTS) $(CHART)
