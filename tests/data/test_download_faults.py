"""Whatever happens to a download, a file that has its name has its content: faults in each file, kills, company."""

import gzip
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SUMS
from test_download import Server, body, impatient, raw, server, status, then_hang, url

from pipeline.stages.download import fetch, read_sums
from pipeline.data.sources import sources

__all__ = ["impatient", "raw", "server"]  # fixtures

NAMES = list(read_sums(SUMS))
KILLS = int(os.environ.get("KILLS", "10"))


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


FAULTS = {
    "503": lambda content: status(503),
    "not there": lambda content: status(404),
    "the connection breaks off": lambda content: body(half(content), len(content)),
    "cut short": lambda content: body(half(content)),
    "one bit": lambda content: body(content[:-1] + bytes([content[-1] ^ 1])),
    "a web page": lambda content: body(b"<!DOCTYPE html><p>Log in"),
    "broken gzip": lambda content: body(half(gzip.compress(content)) + b"?" * 100),
    "it hangs half-way": lambda content: then_hang(b"HTTP/1.0 200 OK\r\n\r\n" + half(content)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_in_a_file_costs_that_source_that_file(
    server: Server, raw, small_mnist, impatient, name, fault, capsys
):
    """The others, and then what the next source has, are right; and what went wrong was said."""
    sums = read_sums(small_mnist / "mnist.sha256")
    server.answers = {other: body((small_mnist / other).read_bytes()) for other in NAMES}
    server.answers[name] = fault((small_mnist / name).read_bytes())
    fetch(sums, raw, [url(server.url), sources(str(small_mnist))[0]])
    assert sums == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in raw.iterdir()}
    assert name in capsys.readouterr().err


def start(folder: Path, mirror: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.stages.download"], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MNIST_MIRROR": str(mirror)},
    )  # fmt: skip


def wrong(folder: Path) -> list[str]:
    """The files that have a name that they do not deserve."""
    sums = read_sums(SUMS)
    return [
        path.name for path in folder.glob("[!.]*") if hashlib.sha256(path.read_bytes()).hexdigest() != sums[path.name]
    ]  # fmt: skip


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return tmp_path


def test_kills_at_any_moment_leave_no_wrong_file(place, mnist):
    """KILLS of them, on the real files, at random moments of the time that it takes."""
    dice, folder, kills = random.Random(0), place / "data" / "raw", 0
    while kills < KILLS:
        process = start(place, mnist)
        try:
            process.wait(dice.uniform(0.05, 0.8))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        assert wrong(folder) == []
        if len(list(folder.glob("[!.]*"))) == len(NAMES):  # it was through: begin anew
            for path in folder.iterdir():
                path.unlink()
    assert start(place, mnist).wait() == 0
    assert wrong(folder) == [] and sorted(path.name for path in folder.iterdir()) == sorted(NAMES)


def test_eight_at_once_give_one_valid_set(place, mnist):
    processes = [start(place, mnist) for _ in range(8)]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    folder = place / "data" / "raw"
    assert wrong(folder) == [] and sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
