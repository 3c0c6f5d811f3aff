"""Who works in the repository: DVC, the stages that it has started, and who is left of them."""

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

from pipeline.commands.checks.finding import Finding

STAGES = ("download", "train", "judge", "evaluate", "log")


def inside(root: Path) -> list[psutil.Process]:
    """The processes that work in the repository, or in the folder of one of its experiments."""
    found = psutil.process_iter(["cmdline", "cwd"])
    return [process for process in found if process.info["cwd"] and Path(process.info["cwd"]).is_relative_to(root)]


def is_dvc(process: psutil.Process) -> bool:
    """Whether it is DVC: a command that a person typed, a worker of the queue, or what that executes."""
    command: list[str] = process.info["cmdline"] or []
    return "dvc" in [Path(part).name for part in command[:2]] or command[1:3] == ["-m", "dvc"]


def stage_of(process: psutil.Process) -> str:
    """The stage that DVC has started this process for, "" if it is none."""
    command: list[str] = process.info["cmdline"] or []
    if match := re.fullmatch(rf"-m pipeline\.({'|'.join(STAGES)})", " ".join(command[1:])):
        try:
            return match[1] if "DVC_STAGE" in process.environ() else ""
        except psutil.Error:
            return ""
    return ""


def at_work(root: Path) -> bool:
    """Whether DVC, or a stage that it has started, works in the repository."""
    return any(is_dvc(process) or stage_of(process) for process in inside(root))


def check_stages(root: Path) -> Iterator[Finding]:
    """A stage whose DVC was killed goes on, and a second `dvc repro` beside it would mix their outputs."""
    processes = inside(root)
    dvc = {process.pid for process in processes if is_dvc(process)}
    for process in processes:
        if (stage := stage_of(process)) and not dvc & {parent.pid for parent in ancestors(process)}:
            yield Finding(f"{stage} goes on, but the DVC that started it is gone", f"kill {process.pid}")


def ancestors(process: psutil.Process) -> list[psutil.Process]:
    """Its parent, the parent's parent and so on, as far as they live."""
    try:
        return list(process.parents())
    except psutil.Error:
        return []
