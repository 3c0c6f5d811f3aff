"""Those who compute at the same time share the cores and take a GPU each: real processes that hold, and are killed."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.repo import Repo, plant
from ruamel.yaml import YAML
from test_modes import wait_for_queue

from pipeline import sharing
from pipeline.runtime.device import alike

# Answers every line: with a number by its share of eight cores, of which it wants that many at most; with names of
# GPUs by the one it gets.
COMPUTING = """
import sys
from pathlib import Path
from pipeline import sharing

sharing._available, root = lambda: 8, Path(sys.argv[1])
for line in sys.stdin:
    if line.strip().isdigit():
        print(sharing.share_of_cores(root, int(line)), flush=True)
    else:
        print(sharing.first_free(root, "train", {name: name for name in line.split()}), flush=True)
"""


class Computing:
    """A process that computes, as far as others can see."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMPUTING, str(root)], cwd=ROOT, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, line: object) -> None:
        self.process.stdin.write(f"{line}\n")

    def share(self, most: int = 8) -> int:
        self.ask(most)
        return int(self.process.stdout.readline())

    def gpu(self, *names: str) -> str:
        self.ask(" ".join(names))
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def computing(root: Path, count: int) -> Iterator[list[Computing]]:
    processes = [Computing(root) for _ in range(count)]
    try:
        yield processes
    finally:
        for each in processes:
            each.kill()


@pytest.fixture(autouse=True)
def no_wishes(monkeypatch):
    """Of the user's: the tests themselves run on one thread."""
    for name in sharing.WISHES:
        monkeypatch.delenv(name, raising=False)


def test_the_cores_are_shared_by_those_who_compute_and_whole_again_when_they_are_killed(tmp_path):
    with computing(tmp_path, 3) as (one, two, three):
        assert one.share() == 8
        assert two.share() == 4 and one.share() == 4
        assert three.share() == 2 and one.share() == 3 and two.share() == 3, "no core is left over"
        two.kill()
        assert one.share() == 4 and three.share() == 4
        three.kill()
        assert one.share() == 8


def test_who_comes_back_takes_the_place_of_who_was_killed(tmp_path):
    for _ in range(3):
        with computing(tmp_path, 2) as (one, two):
            assert one.share() == 8 and two.share() == 4
    assert len(list((tmp_path / ".dvc/tmp/computing").iterdir())) == 2


def test_the_place_of_who_has_ended_is_kept_for_who_comes_next(tmp_path):
    """DVC takes seconds from one stage to the next: meanwhile nobody is to start a thread on that core."""
    with computing(tmp_path, 3) as (one, two, three):
        assert one.share() == 8 and two.share() == 4
        two.process.communicate()
        assert one.share() == 4
        assert three.share() == 4, "in its place"
        three.process.communicate()
        place = tmp_path / ".dvc/tmp/computing/process-001"
        ended = place.stat().st_mtime
        os.utime(place, (ended, ended - sharing.GRACE))
        assert one.share() == 8


def test_with_more_processes_than_cores_each_has_one_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "_available", lambda: 2)
    with computing(tmp_path, 3) as others:
        for each in others:
            each.share()
        assert sharing.share_of_cores(tmp_path, 2) == 1


def test_what_the_user_wishes_is_the_most(tmp_path):
    """PyTorch takes OMP_NUM_THREADS for what it would take alone."""
    code = (
        "import torch, pipeline.runtime.cores as s, pathlib; print(s.share_of_cores(pathlib.Path(), torch.get_num_threads()))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True) == "1\n"


def test_where_there_are_cores_enough_each_has_what_it_would_take_alone(tmp_path):
    with computing(tmp_path, 2) as (one, two):
        assert one.share(3) == 3 and two.share(3) == 3
        assert one.share(6) == 4


def test_there_is_a_core_to_share_and_no_more_than_there_are():
    assert 1 <= sharing._available() <= os.cpu_count()


def test_where_nothing_can_be_locked_nothing_is_shared_and_nothing_stops(tmp_path, monkeypatch):
    (tmp_path / ".dvc").write_text("a file where a folder should be")
    monkeypatch.setattr(sharing, "_available", lambda: 8)
    sharing.join(tmp_path)
    assert sharing.share_of_cores(tmp_path, 6) == 6
    assert sharing.first_free(tmp_path, "train", {"a": 0, "b": 1}) == 0


@pytest.mark.parametrize(("said", "cores"), [("150000 100000\n", 1.5), ("max 100000\n", float("inf"))])
def test_what_a_container_has_been_given_of_the_cores(tmp_path, said, cores):
    (tmp_path / "cpu.max").write_text(said)
    assert sharing._quota(tmp_path / "cpu.max") == cores
    assert sharing._quota(tmp_path / "none") == float("inf")


def test_gpus_that_may_stand_for_one_another_are_of_the_first_ones_model():
    assert alike(["A", "B", "A"], named=None) == [0, 2]
    assert alike(["A", "B", "A"], named=1) == [1]


def test_a_gpu_has_one_process_at_a_time_and_who_finds_none_waits_and_says_so(tmp_path):
    with computing(tmp_path, 4) as (one, two, three, four):
        assert one.gpu("a", "b") == "a" and two.gpu("a", "b") == "b"
        assert one.gpu("a", "b") == "a", "once more: its own"
        assert three.share() == 8
        three.ask("a b")
        assert three.process.stderr.readline() == "train: all 2 GPUs are computing for other experiments: waiting\n"
        four.ask("b")
        assert four.process.stderr.readline() == "train: the GPU is computing for other experiments: waiting\n"
        assert one.share() == 8, "who waits needs no core"
        one.kill()
        assert three.process.stdout.readline() == "a\n"
        two.kill()
        assert four.process.stdout.readline() == "b\n"


def results(repo: Repo, at: str = "") -> dict[str, str]:
    """DVC's hashes of the model and of what was measured: in the workspace, or as an experiment recorded them."""
    if not at:
        paths = (repo.root / "data/model/vae.safetensors", repo.root / "reports/metrics.json")
        return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in paths}
    stages = YAML(typ="safe").load(repo.run("git", "show", f"{repo.experiment(at)}:dvc.lock"))["stages"]
    outs = stages["train"]["outs"] + stages["evaluate"]["outs"]
    return {
        Path(out["path"]).name: out["md5"] for out in outs if out["path"].endswith((".safetensors", "metrics.json"))
    }


def test_two_of_a_queue_see_one_another_and_end_in_the_bytes_of_one_alone(tmp_path, small_mnist):
    repo = plant(tmp_path, small_mnist, num_epochs=40, h_dim=256)
    repo.run("dvc", "repro", "judge")
    repo.commit()
    changes = {"narrow": 2, "wide": 8}
    for name, z_dim in changes.items():
        repo.run("dvc", "exp", "run", "--queue", "-n", name, "-S", f"z_dim={z_dim}")
    # Without the tests' own wish of one thread.
    repo.run("bash", "-c", "unset OMP_NUM_THREADS; dvc queue start -j 2 > .dvc/tmp/workers 2>&1")
    seen, end = 0, time.monotonic() + 120
    while seen < 2 and time.monotonic() < end:
        seen = sum(map(sharing._counts, repo.root.glob(".dvc/tmp/computing/process-*")))
        time.sleep(0.05)
    wait_for_queue(repo, set(changes))
    assert seen == 2
    for name, z_dim in changes.items():
        repo.set(z_dim=z_dim)
        for stage in ("train", "evaluate"):
            repo.run("bash", "-c", f"OMP_NUM_THREADS=2 python -m pipeline.{stage}")
        assert results(repo) == results(repo, at=name)
    assert len(list(repo.root.glob(".dvc/tmp/computing/process-*"))) == 2
