"""How a process starts and ends."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, error_about

from pipeline.errors import writing

ENDS = [
    ("raise UserError('params.yaml: z_dim', 'is missing')", 2, "params.yaml: z_dim: is missing\n"),
    ("raise KeyboardInterrupt", 130, ""),
    ("os.kill(os.getpid(), signal.SIGTERM)", 143, ""),
    ("raise ValueError('a bug')", 1, "Traceback.*ValueError: a bug\n"),
    ("pass", 0, ""),
]


@pytest.mark.parametrize(("code", "status", "message"), ENDS)
def test_the_exit_status_says_how_a_process_ended(code, status, message):
    script = f"""if True:
        import os, signal
        from pipeline.errors import UserError, run
        def main():
            {code}
        run(main)
    """
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status and re.fullmatch(message, done.stderr, re.DOTALL)


def test_a_failed_write_is_an_error_about_the_file(tmp_path):
    path = tmp_path / "missing" / "file"
    with error_about(path), writing(path):
        path.write_text("")
