"""The checkpoint of a training: one file per fingerprint, outside DVC's outputs.

It is a line with a sha256, and tensors in the format of safetensors: those that the next epoch
depends on and, as bytes, the files that the training has written so far, because DVC deletes the
outputs of a stage before it runs it. The sha256 is of the fingerprint and the tensors.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.runtime.files import atomic_write, checkpoint_path, try_lock, unlock, write_output

MAX_SHARE = 0.02  # of the time of a training
EPOCH = "epoch"
FILE = "file:"


@dataclass(frozen=True)
class Checkpoint:
    """A training after `epoch`."""

    epoch: int
    tensors: dict[str, Tensor]
    files: dict[str, bytes]  # by path, relative to the working directory

    def restore_files(self) -> None:
        """Write the files into the working directory."""
        for name, content in self.files.items():
            write_output(Path(name), content)


class CheckpointFile:
    """The file for one fingerprint. It belongs to this process until `remove`.

    Nothing here stops a training: a file that is corrupt, cannot be written or belongs to another
    process is reported in one line.
    """

    def __init__(self, fingerprint: str, report: Callable[[str], None]) -> None:
        self.fingerprint = fingerprint
        self.report = report
        self.path = checkpoint_path(fingerprint)
        self._next = 0.0
        self._lock = self.path.with_suffix(".lock")
        self._ours = try_lock(self._lock)
        if not self._ours:
            report("another process runs the same training; this one writes no checkpoint")

    def load(self) -> Checkpoint | None:
        """The checkpoint, or None if there is no valid one."""
        if not self._ours or not self.path.exists():
            return None
        try:
            return _unpack(self.path.read_bytes(), self.fingerprint)
        except ValueError as error:
            self.report(f"ignoring checkpoint {self.path.name}: {error}")
            return None

    def is_due(self) -> bool:
        """Whether to save a checkpoint now: it then keeps within its share of the time."""
        return self._ours and time.monotonic() >= self._next

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the file. If that fails, no further checkpoint is due."""
        start = time.monotonic()
        try:
            atomic_write(self.path, _pack(checkpoint, self.fingerprint))
        except OSError as error:
            advice = "if interrupted, training restarts from an earlier one or from epoch 1"
            self.report(f"cannot write a checkpoint ({error.strerror}): {advice}")
            self._next = math.inf
            return
        now = time.monotonic()
        self._next = now + (now - start) / MAX_SHARE

    def remove(self) -> None:
        """Delete the file: the training has ended, or would diverge again."""
        if self._ours:
            self.path.unlink(missing_ok=True)
            unlock(self._lock)


def _pack(checkpoint: Checkpoint, fingerprint: str) -> bytes:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    tensors[EPOCH] = torch.tensor(checkpoint.epoch)
    for name, content in checkpoint.files.items():
        tensors[FILE + name] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    body = save(tensors)
    return _digest(body, fingerprint) + b"\n" + body


def _unpack(packed: bytes, fingerprint: str) -> Checkpoint:
    digest, _, body = packed.partition(b"\n")
    if digest != _digest(body, fingerprint):
        raise ValueError("corrupt, or of a different training")
    tensors = load(body)
    epoch = int(tensors.pop(EPOCH))
    names = [name for name in tensors if name.startswith(FILE)]
    files = {name.removeprefix(FILE): bytes(tensors.pop(name).numpy()) for name in names}
    return Checkpoint(epoch, tensors, files)


def _digest(body: bytes, fingerprint: str) -> bytes:
    return hashlib.sha256(fingerprint.encode() + body).hexdigest().encode()
