"""Everything that knows MLflow. Importing it sets the environment variables that MLflow reads."""

import os

SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # By default MLflow waits 4 minutes for a server that refuses connections, 20 for a silent one.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "PGCONNECT_TIMEOUT": "4",  # read by PostgreSQL's client library
}
# What a run contains, and that it is there when a call returns, is no setting. MLflow cannot be
# imported with a level that it does not know.
FIXED = {
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_TRUNCATE_LONG_VALUES": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
os.environ.update(SETTINGS | os.environ | FIXED)  # the user's own values come before SETTINGS
for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_ACTIVE_MODEL_ID"):
    os.environ.pop(name, None)  # of another program
