"""What a kill leaves behind of DVC and git: tasks, folders, a detached HEAD, edits that were set aside, locks."""

import json
import os
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from pipeline.commands.checks.finding import Finding
from pipeline.commands.checks.processes import ancestors, at_work, inside, is_dvc
from pipeline.runtime.git import git

# What DVC has under way in the workspace: there from its beginning to its end, and after a kill.
BASELINE = "refs/exps/exec/EXEC_BASELINE"
LOCKS = (Path(".dvc/tmp/rwlock"), Path(".dvc/tmp/exps/rwlock"))  # of outputs; of the workspace and the queue


def check_queue(root: Path) -> Iterator[Finding]:
    """Tasks that DVC takes for running although their worker is gone, and tasks that wait for such a worker."""
    if not (root / ".dvc/tmp/exps/celery").is_dir():
        return
    from dvc.repo import Repo  # noqa: PLC0415  (a second, and a folder for a queue that nobody has used)

    try:
        queue: Any = Repo(str(root)).experiments.celery_queue
        active = [(task, queue.proc.get(task.stash_rev)) for task in queue.iter_active()]
        waiting = len(list(queue.iter_queued()))
    except Exception as error:  # DVC's files as they are: whatever it says of them
        yield Finding(f"DVC cannot read its queue ({type(error).__name__})", "dvc queue status")
        return
    processes = {process.pid: process for process in inside(root) if is_dvc(process)}
    workers = {pid for pid, process in processes.items() if "queue-worker" in process.info["cmdline"]}
    for task, executor in active:
        name = shlex.quote(task.name or task.stash_rev[:7])
        if executor and executor.pid in processes:
            if not workers & {parent.pid for parent in ancestors(processes[executor.pid])}:
                what = f"{name} goes on, but its worker is gone and nobody will collect it"
                yield Finding(what, f"dvc queue kill {name}")
        elif not workers or (executor and executor.returncode is None):
            command = f"dvc queue kill --force {name}"
            if executor and executor.returncode is None and psutil.pid_exists(executor.pid):
                # The number is another process's by now, and DVC would kill that one.
                command = f"rm .dvc/tmp/exps/run/{task.stash_rev}/{task.stash_rev}.json && {command}"
            yield Finding(f"{name} is Running in the queue, but its worker is gone", command)
    if waiting and not workers and any(died(path) for path in (root / ".dvc/tmp/exps/celery").glob("*-worker-*.json")):
        yield Finding(f"{waiting} wait in the queue, and its worker was killed", "dvc queue start")


def died(record: Path) -> bool:
    """Whether a worker, by the file that DVC keeps of it, did not end by itself."""
    try:
        return bool(json.loads(record.read_text(encoding="utf-8"))["returncode"] != 0)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def check_folders(root: Path) -> Iterator[Finding]:
    """What kills leave on the disk: folders of `--temp` and queued experiments, checkpoints of trainings."""
    folders = [*root.glob(".dvc/tmp/exps/tmp*"), *root.glob(".dvc/tmp/exps/standalone/tmp*")]
    if folders and not at_work(root):
        for folder in sorted(folders):
            name = folder.relative_to(root).as_posix()
            yield Finding(f"{name} is what a killed experiment has left", f"rm -r {name}", remark=True)
    for path in [] if at_work(root) else sorted(root.glob(".dvc/tmp/checkpoints/*.checkpoint")):
        name = path.relative_to(root).as_posix()
        what = f"{name} is what a training goes on from that was interrupted, when it is run again; to begin anew"
        yield Finding(what, f"rm {name}", remark=True)


def check_head(root: Path) -> Iterator[Finding]:
    """HEAD where a killed `dvc exp run` left it, and the edits that it had set aside."""
    started, aside = git("rev-parse", "--verify", "-q", BASELINE, at=root), set_aside(root)
    preparing = "workspace" in (locked(root / LOCKS[1]) or {})
    if not (started or preparing) or at_work(root):
        return
    commands = []
    if not git("symbolic-ref", "-q", "HEAD", at=root) and (branch := left_branch(root)):
        commands.append(["git", "symbolic-ref", "HEAD", branch])
    if started:
        commands.append(["git", "update-ref", "-d", BASELINE])
    if commands:
        what = "HEAD is detached" if "HEAD" in commands[0] else "DVC takes an old commit for HEAD"
        yield Finding(
            f"{what}, as a killed `dvc exp run` left it (your files stay as they are)",
            " && ".join(map(shlex.join, commands)),
            partial(put_back, root, commands),
        )
    if aside:
        # What is in the files by now may be some of it, or more: it is set aside as well.
        now = git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no", at=root)
        pop = "git stash push && git stash pop --index 'stash@{1}'" if now else "git stash pop --index"
        yield Finding(
            "your edits are in `git stash`: a `dvc exp run` was killed that had set them aside",
            f"{pop} && rm {LOCKS[1]}",
        )


def left_branch(root: Path) -> str:
    """The branch that HEAD was on before it was detached, if that is where HEAD still is."""
    branch = git("rev-parse", "--symbolic-full-name", "@{-1}", at=root).strip()
    same = git("rev-parse", branch, at=root) == git("rev-parse", "HEAD", at=root)
    return branch if branch.startswith("refs/heads/") and same else ""


def put_back(root: Path, commands: list[list[str]]) -> bool:
    """Run git's commands, unless DVC has come meanwhile."""
    if at_work(root):
        return False
    for command in commands:
        git(*command[1:], at=root)
    return True


def set_aside(root: Path) -> bool:
    """Whether the newest stash is DVC's, which takes it only while it holds the workspace's lock."""
    lock, stashed = root / LOCKS[1], git("log", "-1", "--format=%ct", "refs/stash", at=root)
    return bool(stashed) and "workspace" in (locked(lock) or {}) and int(stashed) >= int(lock.stat().st_mtime)


def check_locks(root: Path) -> Iterator[Finding]:
    """Lock files that nobody holds: a torn one stops every DVC command, a dead one those that reuse its number."""
    for name in LOCKS:
        # The other one goes with the stash: it is what says whose that is.
        if is_stale(root, name) and not (name == LOCKS[1] and set_aside(root)):
            what = "holds only what a killed DVC has locked" if locked(root / name) else "is torn"
            yield Finding(f"{name} {what}", f"rm {name}", partial(unlock, root, name))


def is_stale(root: Path, name: Path) -> bool:
    """Whether a lock file is torn, or names processes and none that works here."""
    held = locked(root / name)
    # Asked after the file was read: who was just writing it is still here.
    here = {process.pid for process in inside(root)} - {os.getpid()}
    return held != {} and not at_work(root) and not (held and here & set().union(*held.values()))


def locked(path: Path) -> dict[str, set[int]] | None:
    """What a lock file of DVC's locks, with the processes that do; None where it is torn."""
    try:
        lock = json.loads(path.read_text(encoding="utf-8"))
        held = {name: {int(info["pid"])} for name, info in lock.get("write", {}).items()}
        for name, infos in lock.get("read", {}).items():
            held[name] = held.get(name, set()) | {int(info["pid"]) for info in infos}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return held


def unlock(root: Path, name: Path) -> bool:
    """Remove a lock file, if nobody has come meanwhile."""
    if stale := is_stale(root, name):
        (root / name).unlink()
    return stale
