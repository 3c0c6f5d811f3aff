"""What the doctor examines: the MLflow store, and the files that DVC recorded."""
