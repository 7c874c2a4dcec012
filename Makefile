# make app, make test: each makes the environment it needs. The rest: check, faults, bench, demo-model, screenshots.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
export HF_HUB_DISABLE_TELEMETRY = 1
export GRADIO_ANALYTICS_ENABLED = False

.PHONY: app test check faults bench demo-model screenshots clean chromium
.DEFAULT_GOAL := app

app: $(VENV)/.app  ## serve the page (ARGS="--model demo --port 7860")
	$(PY) app.py $(ARGS)

test: check chromium  ## everything that must hold
	$(PY) -m pytest $(ARGS)

check: $(VENV)/.dev  ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .
	$(VENV)/bin/pyright

faults: $(VENV)/.dev  ## kills, full disks, torn logs, malformed calls, many of each (FAULTS=50; some need root)
	$(PY) -m pytest tests/faults -m "faults or not faults" --timeout 1200 $(ARGS)

bench: $(VENV)/.dev chromium  ## measured claims: tables and JSON
	$(PY) -m benchmarks.demo_check
	$(PY) -m benchmarks.page

demo-model: $(VENV)/.app  ## train the bundled model again (up to an hour on 2 cores)
	$(PY) -m steer_heal.models.demo.training.train $(ARGS)

screenshots: $(VENV)/.dev chromium  ## docs/screenshots, from a real browser
	$(PY) -m benchmarks.screenshots

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed ($$($(PYTHON) --version) found): make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || scripts/system-package.sh python3-venv "the venv module"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.app: requirements.txt | $(VENV)/bin/python
	@echo "Installing what the page needs (a few minutes, once) ..."
	$(PIP) -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	@echo "Installing what the tests need (a few minutes, once) ..."
	$(PIP) -r requirements-dev.txt
	@touch $@ $(VENV)/.app

chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  scripts/system-package.sh chromium "a browser for the tests"

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
