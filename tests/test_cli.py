"""python -m pipeline"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import timeit

import pytest
import requests
from conftest import ROOT
from helpers.servers import free_port

from pipeline.__main__ import COMMANDS, main
from pipeline.errors import UserError


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command_in_less_than_half_a_second(arguments):
    command, outputs = [sys.executable, "-m", "pipeline", *arguments], []

    def run() -> None:
        outputs.append(subprocess.check_output(command, cwd=ROOT, text=True))

    assert min(timeit.repeat(run, number=1, repeat=3)) < 0.5
    assert all(name in outputs[0] for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_from_its_module(name, monkeypatch, capsys):
    module = importlib.import_module(f"pipeline.commands.{name.replace('-', '_')}")
    monkeypatch.setattr(sys, "argv", ["pipeline", name, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["compare", "log-all", "doctor"])
def test_a_repository_of_another_user_is_reported_by_git(name, loggable, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setattr(sys, "argv", ["pipeline", name])
    with pytest.raises(UserError, match="detected dubious ownership"):
        main()


def make_ui(folder, port, **env: str) -> subprocess.Popen:
    """`make ui` as in a terminal, in a folder with a blank in its name."""
    (folder / "a clone").mkdir(parents=True)
    (folder / "a clone/pipeline").symlink_to(ROOT / "pipeline")
    command = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "ui", "-o", "setup"]
    command += [f"VENV={sys.prefix}", f"PORT={port}", f"CURDIR={folder / 'a clone'}"]
    # Within `make test`, make would print its level with every message.
    shell = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.Popen(
        command, cwd=folder / "a clone", env=shell | {"PYTHONSAFEPATH": "1"} | env,
        start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_make_ui_does_not_show_the_server_of_another_program(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        process = make_ui(tmp_path, port)
        line, *_ = process.communicate()[0].splitlines()
    assert process.returncode and line.startswith(f"Port {port} ") and "PORT=5001" in line
    assert "http://" not in line


@pytest.mark.parametrize(
    ("port", "uri", "message"),
    [
        ("0", "", "Port 0 cannot be used"),
        ("abc", "", "Port abc cannot be used"),
        ("5000", "SQLite:///missing/runs.db", "MLflow: MLFLOW_TRACKING_URI names no file"),
    ],
)
def test_make_ui_with_a_mistake_is_one_line_and_creates_nothing(tmp_path, port, uri, message):
    process = make_ui(tmp_path, port, MLFLOW_TRACKING_URI=uri)
    line, make = process.communicate()[0].splitlines()
    assert process.returncode and line.startswith(message) and make.startswith("make: ***")
    assert [path.name for path in (tmp_path / "a clone").iterdir()] == ["pipeline"]


def test_make_ui_knows_a_server_by_any_spelling(tmp_path):
    output = make_ui(tmp_path, 5000, MLFLOW_TRACKING_URI="HTTPS://x").communicate()[0]
    assert output == "The runs are on the server that MLFLOW_TRACKING_URI names\n"


@pytest.mark.slow
def test_make_ui_prints_the_link_when_the_server_answers_and_ends_with_ctrl_c(tmp_path):
    port = free_port()
    process = make_ui(tmp_path, port)
    assert f"http://127.0.0.1:{port}/#/" in process.stdout.readline()
    assert requests.get(f"http://127.0.0.1:{port}/health", timeout=60).ok
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    socket.create_server(("127.0.0.1", port)).close()
