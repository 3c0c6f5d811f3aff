"""What a training that was killed goes on from: one file a fingerprint under the root, outside of DVC's outputs.

The file is the sha256 of the rest, then safetensors: the tensors on which the next epoch depends, the files that the
training has written so far, byte for byte, and what they belong to. It is written beside, synced and renamed; one
that is torn, or another training's, is known by its hashes and ignored.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.runtime.files import sync
from pipeline.runtime.pending_run import checkpoint_path

SHARE = 0.02  # of the training's time may go into checkpoints
DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class State:
    """A training after `epoch`: in which execution, its tensors, and its files by their path."""

    epoch: int
    execution: str
    tensors: dict[str, Tensor]
    files: dict[str, bytes]


class Checkpoint:
    """The checkpoint of the training with this fingerprint; within `with`, of this process alone.

    Where another process is training the same, this one neither reads nor writes it. A checkpoint that cannot be
    written is told once and stops nothing.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.root, self.fingerprint = root, fingerprint
        self.path = checkpoint_path(root, fingerprint)
        self._lock = FileLock(self.path.with_suffix(".lock"), timeout=0)
        self._due, self._broken = 0.0, False

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            tell("another process is training the same: this one keeps no checkpoint")
        except OSError as error:
            tell(f"no checkpoint can be kept ({error.strerror})")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lock.release()

    def load(self, num_epochs: int) -> State | None:
        """Where to go on; None where there is nothing, and one line where that is because the file is no good.

        A training that came to its end is gone on from only if it was killed before DVC had recorded it: else it is
        executed on purpose, and in full.
        """
        if not self._lock.is_locked or not self.path.exists():
            return None
        try:
            content = self.path.read_bytes()
            if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
                raise ValueError("torn")
            tensors = load(content[DIGEST:])
            about = json.loads(bytes(tensors.pop("about").numpy()))
            if about["fingerprint"] != self.fingerprint:
                raise ValueError("another's")
            names = [name for name in tensors if name.startswith("file:")]
            files = {name.removeprefix("file:"): bytes(tensors.pop(name).numpy()) for name in names}
            if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
                raise ValueError("not a path of the working directory")
            state = State(about["epoch"], about["execution"], tensors, files)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            tell(f"the checkpoint {self.path.name} is torn or another training's: it is ignored")
            return None
        if state.epoch >= num_epochs and _recorded(self.root, state.files.values()):
            return None
        return state

    def due(self) -> bool:
        """Whether so much time has passed since the last one that the next one keeps within its share."""
        return time.monotonic() >= self._due

    def save(self, state: State) -> None:
        """Replace the checkpoint; after a kill, or a crash of the machine, it is the old one or the new one."""
        if not self._lock.is_locked:
            return
        start = time.monotonic()
        about = {"fingerprint": self.fingerprint, "epoch": state.epoch, "execution": state.execution}
        packed = {f"file:{name}": _packed(content) for name, content in state.files.items()}
        content = save(state.tensors | packed | {"about": _packed(json.dumps(about).encode())})
        new = self.path.with_suffix(".new")
        try:
            with new.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
            sync(self.path.parent)
        except OSError as error:
            new.unlink(missing_ok=True)
            if not self._broken:
                tell(f"no checkpoint can be kept ({error.strerror}): a training that is killed begins anew")
            self._broken = True
        now = time.monotonic()
        self._due = now + (now - start) / SHARE

    def remove(self) -> None:
        """Forget it."""
        if self._lock.is_locked:
            self.path.unlink(missing_ok=True)


def _packed(content: bytes) -> Tensor:
    return torch.from_numpy(np.array(bytearray(content), dtype=np.uint8))


def _recorded(root: Path, contents: Iterable[bytes]) -> bool:
    """Whether DVC's run-cache names files of these contents: it does so as soon as a stage has succeeded."""
    # md5 is DVC's name for a content. Where its cache is, its configuration says: a team may share one.
    names = [hashlib.md5(content, usedforsecurity=False).hexdigest() for content in contents]
    asked = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], cwd=root, capture_output=True, check=False)
    cache = os.fsdecode(asked.stdout).strip() or root / ".dvc" / "cache"
    for entry in Path(cache).glob("runs/*/*/*"):
        with suppress(OSError, UnicodeDecodeError):
            text = entry.read_text(encoding="utf-8")
            if any(name in text for name in names):
                return True
    return False


def put_back(files: Mapping[str, bytes]) -> None:
    """Write the files of a state where they were."""
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def tell(line: str) -> None:
    """Say something about checkpoints."""
    print(f"train: {line}", file=sys.stderr, flush=True)
