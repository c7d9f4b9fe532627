# `make demo`, `make lab`, `make notebooks`, `make test`. Each sets up .venv the first time.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
EDITABLE := $(PIP) --no-build-isolation --editable
CPU_TORCH := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --retries 1 --timeout 15 --extra-index-url https://download.pytorch.org/whl/cpu)
ARGS ?=

.PHONY: setup demo lab notebooks check-notebooks badges test test-all browser lint clean

demo: setup
	$(PY) -m recr1_lite demo $(ARGS)

lab: $(VENV)/.servers
	$(PY) -m jupyterlab --notebook-dir notebooks $(ARGS)

# executes all of them and keeps the outputs; some: make notebooks ARGS="02 solutions/02"
notebooks: $(VENV)/.servers
	$(PY) notebooks/run_notebooks.py $(ARGS)

check-notebooks: setup
	$(PY) tests/notebook_rules.py $(ARGS)

# for a fork, so that its Colab badges open its own copy: make badges REPO=owner/name
badges: setup
	$(PY) notebooks/run_notebooks.py --badges="$(REPO)"

# two processes of one thread each; a file's tests stay together, for the sake of their fixtures
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile $(ARGS)

# what `make test` leaves out: every notebook under the profile smoke, and the slow tests
test-all: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow -n 2 --dist worksteal $(ARGS)

# JupyterLab, the report, the inspector and the served page in Chromium, which has to be there
browser: $(VENV)/.servers
	$(EDITABLE) ".[browser]"
	$(PY) tests/browser/look.py $(ARGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

setup: $(VENV)/.ready

# torch first. Where there is no NVIDIA driver PyTorch's CPU index is offered beside the usual ones: its 2.13.0+cpu wins
# over PyPI's 2.13.0, which brings gigabytes of CUDA. Out of reach, it is passed over with a warning.
# The package last, so that a notebook in any folder imports it; torch has brought the setuptools that this takes.
$(VENV)/.ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("recr1_lite needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 demo")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing what requirements.txt names; about two minutes, once"
	$(PIP) $(CPU_TORCH) torch==2.13.0
	$(PIP) -r requirements.txt
	$(EDITABLE) . --no-deps
	@touch $@

# notebooks 03 and 09 talk to a small server and to an API
$(VENV)/.servers: $(VENV)/.ready
	$(EDITABLE) ".[api,server]"
	@touch $@

# tests, ruff, mypy, and the extras that tests need
$(VENV)/.dev: $(VENV)/.ready
	$(EDITABLE) ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV)
