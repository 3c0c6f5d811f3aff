"""Every file that a dvc.lock names, hashed again.

DVC does not do that: it trusts a read-only file in its cache, and a file whose time is unchanged.
"""

import hashlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.commands.checks.problem import Problem
from pipeline.errors import UserError
from pipeline.params import parse_yaml
from pipeline.paths import DVC_LOCK
from pipeline.runtime.git import experiments, text_at


def check_files(root: Path) -> Iterator[Problem]:
    """Compare DVC's cache and the outputs in the workspace with the hashes in the dvc.lock files.

    The dvc.lock of the workspace, HEAD, and every experiment. A file that is absent is no problem:
    DVC restores it or executes the stage.
    """
    cache = cache_folder(root)
    expected = {}
    commits = {"HEAD": "HEAD"} | {entry.name: entry.commit for entry in experiments(root)}
    for name, commit in commits.items():
        for path, md5 in outputs(text_at(commit, DVC_LOCK.name, root)):
            stored = os.path.relpath(cache / md5[:2] / md5[2:], root)
            expected[stored] = (md5, f"{path} of {name}", f"rm -f {shlex.quote(stored)}")
    for path, md5 in outputs((root / DVC_LOCK).read_text(encoding="utf-8")):
        stored = os.path.relpath(cache / md5[:2] / md5[2:], root)
        expected[stored] = (md5, path, f"rm -f {shlex.quote(stored)} {path} && dvc repro")
        expected[path] = (md5, path, f"rm -f {path} && dvc repro")
    for name, (md5, content, command) in expected.items():
        file = root / name
        if file.is_file() and md5_file(file) != md5:
            yield Problem(f"{name} is corrupt: it should be {content}", command)


def md5_file(path: Path) -> str:
    """The hash by which DVC names a file."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def cache_folder(root: Path) -> Path:
    """The folder with the objects of DVC's cache."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError("dvc", " ".join(done.stderr.split()))
    return root / done.stdout.strip() / "files" / "md5"


def outputs(lock: str) -> list[tuple[str, str]]:
    """Path and md5 of each output that a dvc.lock names, without folders (they are in git)."""
    stages = parse_yaml(lock, DVC_LOCK.name)["stages"].values() if lock else []
    outs = [out for stage in stages for out in stage.get("outs", [])]
    return [(out["path"], out["md5"]) for out in outs if not out["md5"].endswith(".dir")]
