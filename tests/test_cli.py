"""python -m pipeline"""

import importlib
import subprocess
import sys
import timeit

import pytest
from conftest import ROOT

from pipeline.__main__ import COMMANDS, main


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
