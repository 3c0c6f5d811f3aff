"""DVC as a library, and processes of Python that end with the one that started them."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, is_out_of_memory
from pipeline.params import parse_yaml
from pipeline.paths import DVC_LOCK

# An orphan would write beside whoever executes the same thing next.
CHILD = """import runpy, sys
_, code, parent, module, *words = sys.argv
sys.path.insert(0, code)  # not a package of the folder in which it runs
from pipeline.errors import die_with_parent
sys.path.remove(code)
die_with_parent(int(parent))
sys.argv = [module, *words]
runpy.run_module(module, run_name="__main__", alter_sys=True)"""


def child(module: str, *words: str) -> list[str]:
    """The command of a child process that ends with this one: python -m MODULE WORDS."""
    code = str(Path(__file__).parents[2])
    return [sys.executable, "-c", CHILD, code, str(os.getpid()), module, *words]


def environment() -> dict[str, str]:
    """The environment of a child: `python` is this one, also if it is not activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONSAFEPATH": ""}


@contextmanager
def open_repo(root: Path, subject: str = "dvc", **options: Any) -> Iterator[Any]:
    """DVC's Repo in `root`. What the block raises becomes a UserError."""
    from dvc.repo import Repo  # noqa: PLC0415 (0.5 s)

    with dvc_errors(subject), Repo(str(root), **options) as repo:
        yield repo


@contextmanager
def dvc_errors(subject: str = "dvc") -> Iterator[None]:
    """Turn what DVC, its remote or the network raises into a UserError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(subject, reason) from error


def outputs(lock: Mapping[str, Any]) -> dict[Path, str]:
    """The outputs that a dvc.lock names and their md5, without folders (they are in git)."""
    outs = [out for stage in lock.get("stages", {}).values() for out in stage.get("outs", [])]
    return {Path(out["path"]): out["md5"] for out in outs if not out["md5"].endswith(".dir")}


def not_cached(paths: Iterable[Path], lock: str, root: Path) -> list[Path]:
    """Those of the outputs that DVC's cache does not have as the dvc.lock names them."""
    md5 = outputs(parse_yaml(lock, DVC_LOCK.name))
    with open_repo(root) as repo:
        cache = repo.cache.local
        cached = {path for path in md5 if Path(cache.oid_to_path(md5[path])).is_file()}
    return [path for path in paths if path not in cached]
