"""How a process starts and ends."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, error_about

from pipeline.errors import without_password, writing

ENDS = [
    ("raise UserError('params.yaml: z_dim', 'is missing')", 2, "params.yaml: z_dim: is missing\n"),
    ("raise KeyboardInterrupt", 130, ""),
    ("os.kill(os.getpid(), signal.SIGTERM)", 143, ""),
    ("raise PermissionError(13, 'Permission denied', 'x')", 2, ".*Permission denied: 'x'\n"),
    ("raise ValueError('a bug')", 1, "Traceback.*ValueError: a bug\n"),
    ("[0] * 2**62", 3, "out of memory: .*batch_size.*\n"),
    ("import numpy; numpy.empty(2**62, 'u1')", 3, "out of memory: .*\n"),
    ("import torch; torch.empty(2**59)", 3, "out of memory: .*\n"),
    ("import torch; raise torch.OutOfMemoryError('CUDA')", 3, "out of memory: .*\n"),
    ("raise RuntimeError('CUBLAS_STATUS_ALLOC_FAILED')", 3, "out of memory: .*eval_samples\n"),
    ("raise RuntimeError('GPU 0: out of memory')", 3, "out of memory: .*GPU_JOBS\n"),
    ("from pipeline.errors import die_with_parent as die; die(2**22 + 1)", 137, ""),
    ("raise RuntimeError('an illegal memory access')", 1, "Traceback.*illegal memory access\n"),
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


@pytest.mark.parametrize(
    ("place", "root", "kept"),
    [("", "", True), (".dvc/tmp/exps/tmp1", "", True), ("", "other", False), ("other", "", False)],
)
def test_what_dvc_has_set_for_another_stage_is_dropped(tmp_path, place, root, kept):
    """Left over in a shell, or of a stage that runs this repository's DVC."""
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    env = {"DVC_ROOT": str(tmp_path / root), "DVC_EXP_NAME": "x", "DVC_EXP_BASELINE_REV": "f"}
    code = "import os; from pipeline.errors import run; run(lambda: print([*os.environ]))"
    for stage, expected in (({"DVC_STAGE": "log"}, kept), ({}, False)):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path / place, text=True, capture_output=True,
            env=os.environ | env | stage | {"PYTHONPATH": str(ROOT)}, check=True,
        )  # fmt: skip
        assert {name in done.stdout for name in env} == {expected}


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


GPU_ERRORS = {
    "CUDA error: unspecified launch failure\\nCUDA kernel errors might be": (2, 1),
    "CUDA error: device-side assert triggered": (1, 5),  # an index out of range: a bug
}


@pytest.mark.parametrize("message", GPU_ERRORS)
def test_a_gpu_that_fails_is_one_line_and_a_bug_on_it_a_traceback(message):
    script = f"def main(): raise RuntimeError('{message}')\n"
    script += "from pipeline.errors import run; run(main)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    status, lines = GPU_ERRORS[message]
    assert done.returncode == status and len(done.stderr.splitlines()) >= lines
    assert (status == 1) is ("Traceback" in done.stderr)
    assert ("run the same command again" in done.stderr) is (status == 2)


def test_a_failed_write_is_an_error_about_the_file(tmp_path):
    path = tmp_path / "missing" / "file"
    with error_about(path), writing(path):
        path.write_text("")


@pytest.mark.parametrize(
    ("password", "text"),
    [
        ("s3cret", "cannot connect to postgresql://u:s3cret@host/db"),
        ("p@s3cret", "failed to resolve host 's3cret@host'"),
        ("p@S3CRET/x", "failed to resolve host 's3cret'"),
        (
            "p:s3/cret",
            "port could not be cast to an integer: 's3', Max retries exceeded: /cret@host",
        ),
        ("a{s3cret}b", "'s3cret'"),
        ("p%40s3cret", "login of u with p@s3cret failed"),
        ("x/p s3cret", "Max retries exceeded: /p%20s3cret@host"),
        ("!!##", "unknown host !!##"),
        ("s3cret", "unknown host s3cret_x"),
        ("s3.[cret", "unknown host s3.[cret"),
    ],
)
def test_no_part_of_a_password_is_in_a_message(password, text):
    message = without_password(text, f"postgresql+psycopg://u:{password}@host/db")
    assert not re.search("s3|cret|!!##", message, re.IGNORECASE)


@pytest.mark.parametrize("address", ["", "sqlite:///a@b.db", "http://u@host", "http://u:e@host"])
def test_a_message_without_a_password_stays_legible(address):
    text = "database is\n locked: u, host"
    assert without_password(text, address) == "database is locked: u, host"
