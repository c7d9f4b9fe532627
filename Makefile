# Two commands: `make demo` and `make test`. Each sets up .venv the first time.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
CPU_TORCH := $(shell command -v nvidia-smi >/dev/null 2>&1 || echo --retries 1 --timeout 15 --extra-index-url https://download.pytorch.org/whl/cpu)
ARGS ?=

.PHONY: setup demo test lab clean

demo: setup
	$(PY) -m recr1_lite demo $(ARGS)

test: setup
	$(PY) -m pytest $(ARGS)

lab: setup
	$(PY) -m jupyterlab --notebook-dir . $(ARGS)

setup: $(VENV)/.ready

# torch first. Where there is no NVIDIA driver PyTorch's CPU index is offered beside the usual ones: its 2.13.0+cpu wins
# over PyPI's 2.13.0, which brings gigabytes of CUDA. Out of reach, it is passed over with a warning.
$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("recr1_lite needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another one: make PYTHON=python3.12 demo")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "installing what requirements.txt names; about two minutes, once"
	$(PIP) $(CPU_TORCH) torch==2.13.0
	$(PIP) -r requirements.txt
	@touch $@

clean:
	rm -rf $(VENV)
