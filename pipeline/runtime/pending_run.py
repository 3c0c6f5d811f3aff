"""A training that is followed while it runs, by a process of its own that it never waits for.

The process (`pipeline.tracking.follower`) reads the files that the training writes, as anybody could, and tells MLflow. All that
the training does is to leave a claim, start it, and close its stdin when it ends; a kill closes it as well.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import writing
from pipeline.runtime.files import home

CODE = Path(__file__).parents[2]
PATIENCE = 2.0  # seconds in which the mirror may finish what it is at


def checkpoint_path(root: Path, fingerprint: str) -> Path:
    """Where a training that is killed leaves what it goes on from; `log` removes it when all is done."""
    return root / ".dvc" / "tmp" / "checkpoints" / f"{fingerprint[:16]}.checkpoint"


@dataclass
class Claim:
    """An execution of `train` that is still owed its MLflow run, in a file of its own under the root.

    It says that these outputs were computed here and not restored from a cache. Whoever comes next finds it, and by
    `execution` the run that has been begun: the mirror, `log`, or the same training once more after a kill.
    """

    name: str  # of the DVC experiment, "" in the workspace
    fingerprint: str
    provenance: dict[str, Any]
    execution: str = field(default_factory=lambda: uuid.uuid4().hex)
    source: dict[str, Any] | None = None  # where the code stood in git when the training began

    @staticmethod
    def path(root: Path, name: str, fingerprint: str) -> Path:
        """Where the claim of this execution lies, if there is one."""
        return root / ".dvc" / "tmp" / "runs" / f"{name or '@workspace'}-{fingerprint[:16]}.json"

    @classmethod
    def load(cls, path: Path) -> "Claim | None":
        """The claim in `path`; None where there is none, or none that can be read."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, path: Path) -> None:
        """Write it so that a reader sees the old one or the new one, and never half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(asdict(self)), encoding="utf-8")
        unfinished.replace(path)

    def take_over(self, path: Path) -> None:
        """Remove the claims that others than `path` have left on the same execution, under another name."""
        for other in path.parent.glob(f"*-{self.fingerprint[:16]}.json"):
            if other != path and (left := Claim.load(other)) and left.execution == self.execution:
                other.unlink(missing_ok=True)


@contextmanager
def mirrored(fingerprint: str, provenance: Mapping[str, Any], execution: str | None = None) -> Iterator[str]:
    """Have the training in this block followed. Costs a process start, and PATIENCE at the end at the very most.

    Yields the id of the execution: the one that is handed in, or that a training which was killed has left.
    """
    root, name = home(), os.environ.get("DVC_EXP_NAME", "")
    path = Claim.path(root, name, fingerprint)
    claim = Claim(name, fingerprint, dict(provenance))
    if begun := Claim.load(path):  # a training that was killed: its run goes on
        claim.execution = begun.execution
    if execution:
        claim.execution = execution
        claim.take_over(path)
    with writing(path):
        claim.save(path)
    mirror = subprocess.Popen(
        [sys.executable, "-m", "pipeline.tracking.follower", str(path)],
        stdin=subprocess.PIPE,
        process_group=0,  # Ctrl-C and a kill of the group are the training's; what follows from them it learns by stdin
        # from whatever folder the training was started
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))},
    )
    end = b"failed"
    try:
        yield claim.execution
        end = b"finished"
    except (KeyboardInterrupt, SystemExit):
        end = b"killed"
        raise
    finally:
        with suppress(OSError, subprocess.TimeoutExpired):  # it has ended before, or is still at it
            mirror.communicate(end, timeout=PATIENCE)
        mirror.kill()
        mirror.wait()
