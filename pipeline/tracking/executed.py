"""Results that were executed as they stand: those of a commit, or of the workspace.

Nothing here imports MLflow.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import NoResultsError
from pipeline.paths import DVC_YAML, OWN
from pipeline.runtime import git
from pipeline.runtime.dvc import open_repo
from pipeline.tracking.results import CACHED, Results, read_results


@contextmanager
def executed_results(root: Path, entry: git.Experiment | None) -> Iterator[Results]:
    """The results of a commit, in a folder that exists inside the block; None: of the workspace.

    Raises NoResultsError if they are not on this machine or in a remote, or were not executed.
    """
    if entry is None:
        require_executed(root)
        yield read_results()
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        git.check_out(entry.commit, CACHED, root, folder)
        require_executed(folder)
        yield read_results(folder)


def require_executed(folder: Path) -> None:
    """Raise NoResultsError unless the files are what their dvc.lock records as executed.

    A file of DVC's cache may be absent: then the stages that write and read it must agree on its
    hash.
    """
    # In a commit's temporary folder there is no git, and DVC is to leave nothing behind. In its
    # configuration, $HOME in the name of a folder would be a variable.
    with tempfile.TemporaryDirectory() as scratch:
        core = {"no_scm": True, "site_cache_dir": scratch}
        with open_repo(folder, config={"core": core}) as repo:
            changed = _changed(repo)
    if changed:
        names = ", ".join(sorted(changed)[:5])
        raise NoResultsError(names, "not what dvc.lock records as executed; `dvc repro`")


def _changed(repo: Any) -> set[str]:
    """What differs from dvc.lock: parameters, code, stages, outputs."""
    found = repo.stage.load_all(f"{repo.root_dir}/{DVC_YAML}")
    stages = [stage for stage in found if stage.name != "log"]
    changed = {f"dvc.yaml: {stage.name}" for stage in stages if stage.cmd_changed}
    for difference in _differences(stages):
        changed.update(pd.json_normalize(difference, sep=": "))  # params.yaml: KEY
    return changed


def _differences(stages: list[Any]) -> Iterator[dict[str, Any]]:
    outs = [out for stage in stages for out in stage.outs]
    cached = {out.fs_path: out.hash_info for out in outs if out.use_cache}
    # Whatever is in data/own now, `download` has read it.
    deps = [dep for stage in stages for dep in stage.deps if dep.def_path != OWN.as_posix()]
    for item in [*outs, *deps]:
        difference = item.workspace_status()
        is_absent = "deleted" in difference.values()
        if not (is_absent and item.hash_info == cached.get(item.fs_path)):
            yield difference
