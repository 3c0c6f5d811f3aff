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
    ("raise PermissionError(13, 'Permission denied', 'x')", 2, ".*Permission denied: 'x'\n"),
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


TERMINALS = {
    "": (0, r"caf\xe9 \udce9", ""),
    ">&-": (0, "", ""),
    ">&- 2>&-": (0, "", ""),
    "> /dev/full": (2, "", "No space left on device"),
    "| true": (141, "", ""),
}


@pytest.mark.parametrize("redirection", TERMINALS)
@pytest.mark.parametrize("variable", ["PYTHONIOENCODING=ascii", "LC_ALL=C PYTHONUTF8=0", "TERM=x"])
def test_any_text_can_be_printed_to_any_terminal(redirection, variable):
    script = f"""
        env PYTHONCOERCECLOCALE=0 {variable} {sys.executable} -c "if True:
            import sys, time
            from pipeline.errors import run
            run(lambda: (time.sleep(0.2), print('caf\\xe9 \\udce9'), sys.stdout.flush()))
        " {redirection}; exit ${{PIPESTATUS[0]}}
    """
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, check=False)
    status, out, err = TERMINALS[redirection]
    assert done.returncode == status
    assert done.stdout.decode().strip().replace("é", r"\xe9") == out
    assert err in done.stderr.decode() and len(done.stderr.splitlines()) == bool(err)


def test_a_failed_write_is_an_error_about_the_file(tmp_path):
    path = tmp_path / "missing" / "file"
    with error_about(path), writing(path):
        path.write_text("")
