"""The pipeline. An interpreter that lacks its packages is reported in one line."""

import sys
from importlib.util import find_spec

for package in ("safetensors", "torch"):
    if find_spec(package) is None:
        sys.exit(f"{sys.executable} has no package {package}: run `make setup`, or remove .venv")
