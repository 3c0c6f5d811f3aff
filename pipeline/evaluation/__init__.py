"""Metrics and figures of a trained model."""

import os

os.environ["MPLBACKEND"] = "agg"  # Matplotlib is not imported if it does not know the user's own
