"""Every byte that DVC answers for, hashed anew: it trusts its cache, and files whose times have not changed, unseen."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.commands.checks.finding import Finding

Out = Any  # DVC's


def check_content(root: Path) -> Iterator[Finding]:
    """Objects of the cache, of whatever commit, and the outputs in the workspace that DVC takes for unchanged."""
    from dvc.repo import Repo  # noqa: PLC0415  (a second)

    try:
        repo: Any = Repo(str(root))
        outs = [out for out in repo.index.outs if out.hash_info]
        cache = Path(repo.cache.local.path)
    except Exception as error:  # DVC's files as they are: whatever it says of them
        yield Finding(f"DVC cannot read what it has recorded ({type(error).__name__})", "dvc status")
        return
    names = named(outs, cache, root)
    # What a killed DVC has left half-written has other names, and nobody asks for it.
    objects = sorted(path for path in cache.glob("??/*") if re.fullmatch(r"[0-9a-f]{30}(\.dir)?", path.name))
    damaged = []
    for path in tqdm(objects, desc="cache", unit="file", leave=False, disable=None):
        name = path.parent.name + path.name
        if md5(path) != name.removesuffix(".dir"):
            damaged.append(name)
    for name in damaged:
        shown = relative(cache / name[:2] / name[2:], root)
        if name in names:
            files = " ".join(names[name])
            yield Finding(
                f"{shown} is damaged, which DVC would give out as {files}", f"rm -rf {shown} {files} && dvc repro"
            )
        else:
            yield Finding(f"{shown} is damaged, which another commit or experiment has", f"rm -f {shown}")
    for out in outs:
        path = Path(out.fs_path)
        trusted = path.exists() and not out.workspace_status()
        if trusted and digest(path) != out.hash_info.value and not any(name in damaged for name in inside(out, cache)):
            shown = relative(path, root)
            yield Finding(f"{shown} is not what dvc.lock names, and DVC does not see it", f"rm -r {shown} && dvc repro")


def named(outs: list[Out], cache: Path, root: Path) -> dict[str, list[str]]:
    """The files of the workspace for which an object of the cache stands, by the object's name."""
    found: dict[str, list[str]] = {}
    for out in outs:
        for name, below in inside(out, cache).items():
            found.setdefault(name, []).append(relative(Path(out.fs_path, below), root))
    return found


def inside(out: Out, cache: Path) -> dict[str, str]:
    """The objects of an output, and where in it each belongs: itself, and the files of a folder."""
    name: str = out.hash_info.value
    found = {name: ""}
    if name.endswith(".dir"):
        try:
            entries = json.loads((cache / name[:2] / name[2:]).read_text(encoding="utf-8"))
            found |= {entry["md5"]: entry["relpath"] for entry in entries}
        except (OSError, ValueError, LookupError, TypeError):  # it is damaged itself, or was never cached
            pass
    return found


def md5(path: Path) -> str:
    """DVC's name for a content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def digest(path: Path) -> str:
    """DVC's name for a file, or for a folder with all that is in it."""
    if path.is_file():
        return md5(path)
    from dvc_data.hashfile.hash_info import HashInfo  # noqa: PLC0415
    from dvc_data.hashfile.tree import Tree  # noqa: PLC0415

    tree: Any = Tree()  # type: ignore[no-untyped-call]
    for file in path.rglob("*"):
        if file.is_file():
            tree.add(file.relative_to(path).parts, None, HashInfo("md5", md5(file)))
    tree.digest()
    return str(tree.hash_info.value)


def relative(path: Path, root: Path) -> str:
    """A path as a person in `root` would type it; a cache may be elsewhere."""
    return shlex.quote(os.path.relpath(path, root))
