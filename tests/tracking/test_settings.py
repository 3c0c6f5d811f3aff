"""Environment variables of MLflow."""

import os
import subprocess
import sys

from conftest import ROOT


def test_that_a_call_has_written_is_no_setting():
    """With asynchronous logging a run is FINISHED although the store refused its metrics."""
    code = (
        "import pipeline.tracking, mlflow; print(mlflow.config.MLFLOW_ENABLE_ASYNC_LOGGING.get())"
    )
    # MLflow cannot be imported with a level that it does not know.
    env = os.environ | {"MLFLOW_ENABLE_ASYNC_LOGGING": "true", "MLFLOW_LOGGING_LEVEL": "loud"}
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, cwd=ROOT, env=env, text=True)
    assert output == "False\n"
