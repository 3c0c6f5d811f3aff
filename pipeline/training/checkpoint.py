"""The checkpoint of a training: one file per fingerprint, outside DVC's outputs.

The file is a sha256 and, in the format of safetensors, what it covers: the tensors that the next
epoch depends on, and the files that the training has written so far, because DVC deletes the
outputs of a stage before it runs it.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pipeline.runtime.files import atomic_write, checkpoint_path

MAX_SHARE = 0.02  # of the time of a training
DIGEST_SIZE = hashlib.sha256().digest_size
FILE, HEADER = "file:", "header"


@dataclass(frozen=True)
class Checkpoint:
    """A training after `epoch`."""

    epoch: int
    execution: str
    tensors: dict[str, Tensor]
    files: dict[str, bytes]  # by path, relative to the working directory


class CheckpointFile:
    """The checkpoint of one fingerprint. Inside `with` it belongs to this process alone.

    Nothing here stops a training: a file that is corrupt, cannot be written or is in use by another
    process is reported in one line.
    """

    def __init__(self, fingerprint: str, report: Callable[[str], None]) -> None:
        self.fingerprint = fingerprint
        self.report = report
        self.path = checkpoint_path(fingerprint)
        self._lock = FileLock(self.path.with_suffix(".lock"), blocking=False)
        self._next = 0.0
        self._failed = False

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            self.report("another process runs the same training; this one writes no checkpoint")
        except OSError as error:
            self._report_failure(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def load(self) -> Checkpoint | None:
        """The checkpoint, or None if there is no valid one."""
        if not self._lock.is_locked or not self.path.exists():
            return None
        try:
            return _unpack(self.path.read_bytes(), self.fingerprint)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            self.report(
                f"ignoring checkpoint {self.path.name}: corrupt, or of a different training"
            )
            return None

    def is_due(self) -> bool:
        """Whether a checkpoint now keeps within its share of the time."""
        return time.monotonic() >= self._next

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the file."""
        if not self._lock.is_locked:
            return
        start = time.monotonic()
        try:
            atomic_write(self.path, _pack(checkpoint, self.fingerprint))
        except OSError as error:
            self._report_failure(error)
        now = time.monotonic()
        self._next = now + (now - start) / MAX_SHARE

    def remove(self) -> None:
        """Delete the file: the training has ended, or would diverge again."""
        if self._lock.is_locked:
            self.path.unlink(missing_ok=True)

    def _report_failure(self, error: OSError) -> None:
        if not self._failed:
            self.report(
                f"cannot write a checkpoint ({error.strerror}): "
                "if interrupted, training restarts from epoch 1"
            )
        self._failed = True


def restore_files(checkpoint: Checkpoint) -> None:
    """Write the files of the checkpoint into the working directory."""
    for name, content in checkpoint.files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def _pack(checkpoint: Checkpoint, fingerprint: str) -> bytes:
    header = {
        "fingerprint": fingerprint,
        "epoch": checkpoint.epoch,
        "execution": checkpoint.execution,
    }
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    for name, content in checkpoint.files.items():
        tensors[FILE + name] = _to_tensor(content)
    tensors[HEADER] = _to_tensor(json.dumps(header).encode())
    content = save(tensors)
    return hashlib.sha256(content).digest() + content


def _unpack(content: bytes, fingerprint: str) -> Checkpoint:
    digest, content = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("corrupt")
    tensors = load(content)
    header = json.loads(bytes(tensors.pop(HEADER).numpy()))
    if header["fingerprint"] != fingerprint:
        raise ValueError("of a different training")
    names = [name for name in tensors if name.startswith(FILE)]
    files = {name.removeprefix(FILE): bytes(tensors.pop(name).numpy()) for name in names}
    return Checkpoint(header["epoch"], header["execution"], tensors, files)


def _to_tensor(content: bytes) -> Tensor:
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if content
        else torch.empty(0, dtype=torch.uint8)
    )
