"""The format of every file with tensors."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from pipeline.runtime.tensor_file import write_tensors


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps this limit")
def test_too_little_memory_is_not_reported_as_an_invalid_file(tmp_path):
    """The file is mapped twice, by safetensors and by PyTorch: here the second one fails."""
    path = tmp_path / "dataset.safetensors"
    write_tensors(path, {"images": torch.zeros(200_000_000, dtype=torch.uint8)}, {})
    script = f"""if True:
        import resource, psutil, torch
        from pathlib import Path
        from pipeline.errors import run
        from pipeline.runtime.tensor_file import read_tensors
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, resource.RLIM_INFINITY))
        run(lambda: read_tensors(Path({str(path)!r})))
    """
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stderr.startswith("out of memory: ")
