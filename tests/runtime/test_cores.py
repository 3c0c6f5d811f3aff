"""Concurrent experiments divide the cores and take one GPU each: real processes, and kills."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest
from conftest import ROOT

from pipeline.runtime import cores

# Answers each line: a number with its share of eight cores, of which it wants that many at most;
# names of GPUs with the one it reserves.
EXPERIMENT = """
import sys
from pipeline.runtime import cores

cores.available_cores = lambda: 8
for line in sys.stdin:
    words = line.split()
    answer = cores.share_of_cores(int(line)) if line.strip().isdigit() else cores.reserve_gpu(words)
    print(answer, flush=True)
"""


class Experiment:
    def __init__(self, stack: ExitStack) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", EXPERIMENT], text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        stack.callback(self.kill)

    def send(self, line: object) -> None:
        self.process.stdin.write(f"{line}\n")

    def answer(self) -> int:
        return int(self.process.stdout.readline())

    def ask(self, line: object) -> int:
        self.send(line)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        yield lambda: Experiment(stack)


def test_experiments_divide_the_cores_and_a_killed_one_gives_its_share_back(start, tmp_path):
    one, two, three = start(), start(), start()
    assert one.ask(8) == 8
    assert two.ask(8) == 4 and one.ask(8) == 4
    assert three.ask(8) == 2 and one.ask(8) == 2
    assert one.ask(1) == 1, "not more than it asks for"
    two.kill()
    assert one.ask(8) == 4
    four = start()
    assert four.ask(8) == 2
    assert len(list((tmp_path / ".dvc/tmp/computing/cores").iterdir())) == 3, "leftovers are reused"


def test_with_more_experiments_than_cores_each_has_one_thread(start, monkeypatch):
    assert [start().ask(8) for _ in range(2)] == [8, 4]
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    assert cores.share_of_cores(2) == 1


def test_a_gpu_has_one_experiment_at_a_time_and_others_wait_with_a_message(start):
    one, two, three = start(), start(), start()
    assert one.ask("a b") == 0 and two.ask("a b") == 1
    assert one.ask("a b") == 0, "its own, again"
    three.send("a b")
    assert three.process.stderr.readline() == "waiting for the GPU (in use by another experiment)\n"
    two.kill()
    assert three.answer() == 1


def test_without_locks_nothing_is_divided_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dvc").write_text("a file in place of the folder")
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    assert cores.share_of_cores(6) == 6
    assert cores.reserve_gpu(["a", "b"]) == 0
