"""python -m pipeline"""

import importlib
import subprocess
import sys
import timeit

import pytest
from conftest import ROOT

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
