"""Whether files still have the content that DVC recorded."""

import hashlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.commands.checks.problem import Problem, when_idle
from pipeline.params import parse_yaml
from pipeline.paths import DVC_LOCK
from pipeline.runtime.dvc import open_repo, outputs
from pipeline.runtime.git import git


def check_files(root: Path) -> Iterator[Problem]:
    """Hash the files in DVC's cache again, and the outputs in the workspace.

    DVC trusts a read-only file in its cache, and a file whose time is unchanged. A file that is
    absent is no problem: DVC restores it or executes the stage.
    """
    lock = (root / DVC_LOCK).read_text(encoding="utf-8") if (root / DVC_LOCK).exists() else ""
    recorded = outputs(parse_yaml(lock or "stages: {}", DVC_LOCK.name))
    with open_repo(root) as repo:
        cache = sorted(Path(repo.cache.local.path).glob("??/[0-9a-f]*"))
        expected = {file: file.parent.name + file.stem for file in cache}  # the name of each file
        expected |= {root / path: md5 for path, md5 in recorded.items()}
        for file, md5 in expected.items():
            if file.is_file() and _md5(file) != md5:
                yield _report(file, md5, lock, repo)


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def _report(file: Path, md5: str, lock: str, repo: Any) -> Problem:
    name = shlex.quote(os.path.relpath(file, repo.root_dir))
    if file.is_relative_to(repo.cache.local.path):
        restore = f"rm -f {name} && dvc repro"
        if md5 not in lock:
            restore = _in_commit(md5, restore, repo)
        return Problem(f"{name} is corrupt", when_idle(restore))
    _, trusted = repo.state.get(str(file), repo.fs)  # None if the file is newer
    if trusted and trusted.value == md5:  # git ignores *.orig
        return Problem(f"{name} is corrupt", when_idle(f"mv {name} {name}.orig && dvc repro"))
    return Problem(f"{name} is not as in dvc.lock; to record it", when_idle("dvc commit -f"))


def _in_commit(md5: str, restore: str, repo: Any) -> str:
    """The command that restores a file where an experiment or another commit uses it.

    In the workspace `dvc repro` restores nothing that dvc.lock does not name, and `dvc fetch
    --all-commits` nothing of experiments. If no commit uses the file, it is not restored.
    """
    added = ("log", "--all", "--reverse", "--format=%h", f"-S{md5}", "--", DVC_LOCK.name)
    commits = git(*added, at=Path(repo.root_dir)).split()
    if not commits:
        return restore
    pull = " --pull" if repo.config["core"].get("remote") else ""
    command = f"git checkout {commits[0]} && {restore}{pull} && git checkout -f - && dvc checkout"
    return f"with all changes committed: {command}"
