# make repro: MNIST → VAE → evaluation → MLflow.  make test: every test.  make: what else there is.
# Every target first makes .venv from the hash-pinned lock; that is a no-op when it is current.
PYTHON ?= python3
VENV   ?= $(CURDIR)/.venv
PORT   ?= 5000
JOBS   ?= 2

# For what dvc starts. The tools themselves are named with their path, since the make of macOS would look for them
# in the PATH it was started with.
export PATH := $(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help setup install lock repro queue bench test check format ui

help:           ## this list
	@awk -F ':.*## *' '/^[a-z]+:.*##/ {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:          ## .venv from requirements.lock
	@cmp -s requirements.lock "$(VENV)/requirements.lock" || $(MAKE) --no-print-directory install

# The copy of the lock is written last: a half-made .venv never counts as current.
install:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed ($(PYTHON) is older): make PYTHON=/path/to/python3 ..." >&2; exit 2; }
	"$(PYTHON)" -m venv "$(VENV)"
	"$(VENV)/bin/python" -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
	@cp requirements.lock "$(VENV)/requirements.lock"

lock:           ## requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --generate-hashes --all-extras --python-version 3.11 \
	  --custom-compile-command "make lock" pyproject.toml -o requirements.lock

# DVC clears a stage's outputs before it runs it: a wrong line in params.yaml is better found before that.
repro: setup    ## download → train → evaluate → log
	@"$(VENV)/bin/python" -c "from pipeline import errors, params; errors.run(params.load_params)"
	"$(VENV)/bin/dvc" repro
	@git diff --quiet HEAD -- dvc.lock 2> /dev/null; [ $$? -ne 1 ] || \
	  echo "dvc.lock has changed. To compare experiments with these results: git add -A && git commit -m MESSAGE"

# Workers end when the queue is empty; where some are at work already, only what JOBS has more is started.
queue: setup    ## what `dvc exp run --queue` has queued, JOBS=2 at a time
	@if "$(VENV)/bin/dvc" queue status | grep -q " Queued *$$"; then \
	  "$(VENV)/bin/dvc" queue start -j $(JOBS) && \
	  echo "How far it is: dvc queue status; what one says: dvc queue logs NAME -f; what came out: python -m pipeline.commands.compare"; \
	else echo "Nothing waits in the queue: dvc exp run --queue -S z_dim=2,5,10,20 puts four experiments there"; fi

# A file at a time on each core: the tests wait for processes of their own more than they compute. In the order of
# their names, which ends with many short ones: xdist would keep the files of a few long tests for the end.
test: setup     ## every test
	"$(VENV)/bin/python" -m pytest -n auto --dist loadfile --no-loadscope-reorder

bench: setup    ## how fast everything is, into reports/benchmarks/: about ten minutes
	"$(VENV)/bin/python" benchmarks/run.py $(ROUNDS)

check: setup    ## format, lint, types, import contract
	"$(VENV)/bin/ruff" format --check .
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/mypy"
	"$(VENV)/bin/lint-imports"

format: setup   ## mend what `make check` can mend by itself
	"$(VENV)/bin/ruff" format .
	"$(VENV)/bin/ruff" check --fix .

ui: setup       ## MLflow on 127.0.0.1 (PORT=5000): compare runs, curves and pictures
	@case "$$MLFLOW_TRACKING_URI" in http*) echo "The runs are on the server that MLFLOW_TRACKING_URI names"; exit;; esac; \
	echo "Open http://127.0.0.1:$(PORT)$${MLFLOW_TRACKING_URI-/#/experiments/1/runs?viewStateShareKey=results}; end with Ctrl-C"; \
	exec "$(VENV)/bin/mlflow" ui --host 127.0.0.1 --port $(PORT) --workers 1 \
	  --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"
