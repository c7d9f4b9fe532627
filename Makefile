# `make demo`, `make lab`, `make notebooks`, `make test`. Each sets up .venv the first time.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
CPU_TORCH := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --retries 1 --timeout 15 --extra-index-url https://download.pytorch.org/whl/cpu)
ARGS ?=

.PHONY: setup demo test lab notebooks badges clean

demo: setup
	$(PY) -m recr1_lite demo $(ARGS)

# two processes of one thread each (tests/conftest.py says what stays together); in one process: make test ARGS="-n 0"
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup $(ARGS)

lab: setup
	$(PY) -m jupyterlab --notebook-dir notebooks $(ARGS)

# executes all of them and keeps the outputs; some: make notebooks ARGS="02 solutions/02"
notebooks: setup
	$(PY) -m recr1_lite.notebooks run --profile cpu $(ARGS)

# for a fork, so that its Colab badges open its own copy: make badges REPO=owner/name
badges: setup
	$(PY) -m recr1_lite.notebooks badges "$(REPO)"

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
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV)
