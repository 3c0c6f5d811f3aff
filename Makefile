# `make` lists the commands. Every command first installs .venv from the hash-pinned lock; if .venv is
# current, that does nothing.
PYTHON ?= python3
VENV   ?= $(CURDIR)/.venv
PORT   ?= 5000
JOBS   ?= 2

# For the processes that DVC starts. The tools themselves are called by their path: make on macOS
# looks for them in the PATH that it was started with.
export PATH := $(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
unexport PYTHONSAFEPATH

# One file at a time on each of two workers: tests mostly wait for processes of their own.
PYTEST = "$(VENV)/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help setup install lock repro queue test test-slow test-all check format bench bench-gpu tables ui

help:           ## this list
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ {printf "make %-9s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:          ## install .venv from requirements.lock
	@cmp -s requirements.lock "$(VENV)/requirements.lock" || $(MAKE) --no-print-directory install

# The copy of the lock is written last, so that an interrupted installation does not count as current.
install:
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "$(PYTHON) is not Python 3.11 to 3.14: make PYTHON=/path/to/python3.14 ..." >&2; exit 2; }
	"$(PYTHON)" -m venv "$(VENV)"
	"$(VENV)/bin/python" -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	@cp requirements.lock "$(VENV)/requirements.lock"

# DVC deletes the outputs of a stage before it runs it, so params.yaml is checked before DVC starts.
repro: setup    ## download, train, evaluate, log to MLflow
	@"$(VENV)/bin/python" -c "from pipeline import errors, params; from pipeline.data import catalog; \
	  errors.run(lambda: catalog.find_dataset(params.load_params().dataset))"
	"$(VENV)/bin/dvc" repro
	@git diff --quiet HEAD -- dvc.lock 2> /dev/null; [ $$? -ne 1 ] || \
	  echo "dvc.lock has changed. To compare experiments with these results: git add -A && git commit"

queue: setup    ## run the experiments that `dvc exp run --queue` has queued, JOBS=2 at a time
	@if "$(VENV)/bin/dvc" queue status | grep -q " Queued *$$"; then \
	  "$(VENV)/bin/dvc" queue start -j $(JOBS) && \
	  echo "Next: dvc queue status, dvc queue logs NAME -f, python -m pipeline compare"; \
	else echo "The queue is empty. Next: dvc exp run --queue -S z_dim=2,5,10,20"; fi

test: setup     ## the tests to run before a commit, about five minutes on two cores
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

test-all: setup ## all tests: faults, servers, a browser, a full disk
	$(PYTEST)

check: setup    ## format, lint, types, import contracts
	"$(VENV)/bin/ruff" format --check .
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/mypy"
	"$(VENV)/bin/lint-imports"

format: setup   ## fix what `make check` can fix
	"$(VENV)/bin/ruff" format .
	"$(VENV)/bin/ruff" check --fix .

lock: setup     ## resolve requirements.lock from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --generate-hashes --all-extras --python-version 3.11 \
	  --custom-compile-command "make lock" pyproject.toml -o requirements.lock

bench: setup    ## measure the speed on this machine, into reports/benchmarks/; about ten minutes
	"$(VENV)/bin/python" -m benchmarks.run $(ROUNDS)

bench-gpu: setup  ## the same for a GPU: bits, kernels, time
	"$(VENV)/bin/python" -m benchmarks.run gpu training

tables: setup   ## execute published configurations and write docs/results.md; hours
	"$(VENV)/bin/python" -m benchmarks.tables $(TABLES)

# MLflow's own messages go into a file. The link appears when the server answers. The address of the
# store may contain a password and is no argument: other users can read command lines.
ui: setup       ## MLflow on 127.0.0.1 (PORT=5000): compare runs, curves and pictures
	@store=$$("$(VENV)/bin/python" -c "import importlib, pathlib; from pipeline import errors; \
	    locate = lambda: importlib.import_module('pipeline.tracking.address').locate(pathlib.Path.cwd()); \
	    errors.run(lambda: print(locate()[0]))") || exit; \
	case "$$store,$$MLFLOW_TRACKING_URI$$MLFLOW_EXPERIMENT_NAME" in \
	  http*) echo "The runs are on the server that MLFLOW_TRACKING_URI names"; exit;; \
	  *,) page="experiments/1/runs?viewStateShareKey=results&";; \
	  *) page="experiments?";; \
	esac; \
	"$(VENV)/bin/python" -c "import socket; socket.create_server(('127.0.0.1', $(PORT) or -1))" 2> /dev/null || \
	  { echo "Port $(PORT) cannot be used, or another server uses it: make ui PORT=5001" >&2; exit 2; }; \
	( until "$(VENV)/bin/python" -c "import http.client as h; c = h.HTTPConnection('127.0.0.1', $(PORT)); \
	    c.request('GET', '/health'); c.getresponse()" 2> /dev/null; do sleep 0.2; kill -0 $$$$ 2> /dev/null || exit; done; \
	  echo "Open http://127.0.0.1:$(PORT)/#/$${page}workflowType=machine_learning, end with Ctrl-C" ) & \
	mkdir -p .dvc/tmp && MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_BACKEND_STORE_URI="$$store" \
	"$(VENV)/bin/mlflow" ui --host 127.0.0.1 --port $(PORT) --workers 1 > .dvc/tmp/ui.log 2>&1; \
	kill $$! 2> /dev/null; grep -i error .dvc/tmp/ui.log >&2; exit 1
