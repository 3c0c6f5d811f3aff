"""How a process starts and ends."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from pipeline.errors import UserError, writing

ENDS = {
    "raise UserError('params.yaml: z_dim', 'is missing')": (2, "params.yaml: z_dim: is missing\n"),
    "raise KeyboardInterrupt": (130, ""),
    "os.kill(os.getpid(), signal.SIGTERM)": (143, ""),
    "pass": (0, ""),
}


def process(code: str, **env: str) -> subprocess.Popen:
    header = "import os, signal, subprocess, sys, time; from pipeline.errors import UserError, run"
    command = [sys.executable, "-c", f"{header}\ndef main():\n  {code}\nrun(main)"]
    pipe = subprocess.PIPE
    env = {**os.environ, **env}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=pipe, stderr=pipe)


@pytest.mark.parametrize(("code", "end"), ENDS.items(), ids=ENDS)
def test_the_exit_status_says_how_a_process_ended(code, end):
    running = process(code)
    _, stderr = running.communicate()
    assert (running.returncode, stderr) == end


def test_another_exception_has_a_traceback():
    running = process("raise ValueError('a bug')")
    assert "Traceback" in running.communicate()[1]
    assert running.returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is a call of Linux")
def test_a_stage_is_killed_with_the_process_that_started_it():
    stage = "from pipeline.errors import run; import time; run(lambda: time.sleep(60))"
    code = f"print(subprocess.Popen([sys.executable, '-c', {stage!r}]).pid, flush=True); os.wait()"
    parent = process(code, DVC_STAGE="train")
    pid = int(parent.stdout.readline())
    time.sleep(0.5)  # until the stage has called prctl
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(pid)


def running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    stat = subprocess.run(["ps", "-o", "stat=", str(pid)], capture_output=True, text=True).stdout
    return stat.strip() not in ("", "Z")


def test_a_failed_write_is_an_error_about_the_file(tmp_path):
    path = tmp_path / "missing" / "file"
    with pytest.raises(UserError) as error, writing(path):
        path.write_text("")
    assert error.value.subject == str(path)
