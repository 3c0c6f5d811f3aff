"""python -m pipeline"""

import importlib
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from pipeline.__main__ import COMMANDS


def cli(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_help_lists_every_command(arguments):
    result = cli(*arguments)
    assert result.returncode == 0
    assert all(name in result.stdout for name in COMMANDS)


def test_help_takes_less_than_half_a_second():
    def seconds() -> float:
        start = time.perf_counter()
        cli("--help")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_from_its_module(name):
    module = importlib.import_module(f"pipeline.commands.{name.replace('-', '_')}")
    result = cli(name, "--help")
    assert result.returncode == 0, result.stderr
    assert module.__doc__.splitlines()[0] in result.stdout


@pytest.mark.parametrize("arguments", [("unknown",), ("compare", "--unknown")])
def test_a_wrong_command_line_exits_with_2(arguments):
    assert cli(*arguments).returncode == 2
