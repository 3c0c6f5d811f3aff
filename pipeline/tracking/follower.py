"""Follows a training in its own process: what it writes to its files goes to MLflow, an epoch at a time.

Started by `live.mirrored` with the path of the claim. It reads what everybody can read, holds no part of the training
up, and says one line if the store is away. It ends when its stdin is closed, and a kill of the training closes it too.
"""

import csv
import os
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from pipeline.tracking.run_note import short_name, tags_of
from pipeline.tracking.results import HISTORY, SAMPLES, Record, parse, sample_pictures
from pipeline.runtime.pending_run import PATIENCE, Claim
from pipeline.params import load_params
from pipeline.runtime.git import Source, here
from pipeline.runtime.files import home
from pipeline.tracking.server import StoreError, ask

if TYPE_CHECKING:
    from pipeline.tracking.upload import Follower

POLL = 1.0  # seconds between two looks at the files
PAUSE = 30.0  # seconds before a store that was away is tried again
ENDS = {"failed": "FAILED", "killed": "KILLED"}  # a run whose training has finished is ended by `log`


class Training:
    """The process that this one follows: how it ended, as it said on the way out."""

    def __init__(self) -> None:
        self.said = ""
        self._ended = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        self.said = sys.stdin.read() or "killed"
        # However much a store hangs: nothing outlives the training for long.
        threading.Timer(PATIENCE * 0.75, lambda: os._exit(0)).start()
        self._ended.set()

    def over(self, within: float) -> bool:
        """Wait up to `within` seconds for its end."""
        return self._ended.wait(within)


class History:
    """history.csv as it grows: whole lines only, each of them once."""

    def __init__(self, path: Path) -> None:
        self.path, self.columns, self.read = path, [""], 0

    def new(self) -> list[Record]:
        """The records that have come since the last time."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.read)
            whole = file.read().rpartition(b"\n")[0]
            if whole:
                lines = list(csv.reader(whole.decode().splitlines()))
                self.columns = self.columns if self.read else lines.pop(0)
                self.read += len(whole) + 1
                return [parse(dict(zip(self.columns, line, strict=True))) for line in lines]
        return []


def main() -> None:
    """Follow the training whose claim is named, to its end."""
    os.nice(10)  # the training comes first
    path, training = Path(sys.argv[1]), Training()
    claim = Claim.load(path)
    try:
        # Held as long as this process lives: whoever can take it knows that nobody is training.
        with FileLock(path.with_suffix(".lock"), timeout=PATIENCE):
            if claim is not None:
                claim.source = asdict(here())
                claim.save(path)
                follow(training, claim, path)
    except OSError as error:  # a full disk, or another mirror that will not end
        tell(f"MLflow does not follow the training; `log` will add what is missing ({error.strerror or error})")
    if training.said == "failed":
        path.unlink(missing_ok=True)


def follow(training: Training, claim: Claim, path: Path) -> None:
    """Tell MLflow of every epoch that comes; where it is away, say so once and try again from time to time."""
    history, follower, warned, resume = History(HISTORY), None, False, 0.0
    seen: list[tuple[int, Record]] = []
    epoch, over = 0, False
    while not over:
        over = training.over(within=POLL)
        seen += [(time.time_ns() // 1_000_000, record) for record in history.new()]
        if not seen or (follower is None and over) or time.monotonic() < resume:
            continue  # not an epoch yet, or nothing that `log` would not do as well
        try:
            follower = follower or begin(claim, path)
            epoch = int(seen[-1][1]["epoch"])
            follower.follow(seen, [picture for picture in sample_pictures(SAMPLES) if picture.step <= epoch])
            seen.clear()
        except StoreError as error:
            resume = time.monotonic() + PAUSE
            if not warned:
                warned = True
                tell(f"MLflow is away, the training goes on without it; `log` will add what is missing ({error})")
    if follower is not None and training.said in ENDS:
        with suppress(StoreError):
            follower.store.close(follower.run.info.run_id, ENDS[training.said])


def begin(claim: Claim, path: Path) -> "Follower":
    """The run of the claim: begun here, or by a training that was killed."""
    ask(home())
    # MLflow takes seconds to import, and the training's processors: not before there is somebody to talk to.
    from pipeline import projection, tracking  # noqa: PLC0415

    store = tracking.open_store(home())
    run = store.begun(claim.execution)
    if run is not None and run.info.status == "FINISHED":  # executed once more: a run of its own
        claim.execution, run = uuid.uuid4().hex, None
        claim.save(path)
    source = Source(**claim.source or {})
    name = claim.name or short_name(load_params())
    tags = tags_of({"fingerprint": claim.fingerprint, **claim.provenance}, source) | {"execution": claim.execution}
    if run is None:
        run = store.create(name, tags)
        projection.send_params(store, run, claim.provenance["params"])
        tell(f"MLflow follows the training as run {name}")
    else:
        store.reopen(run, name, tags)
    return projection.Follower(store, run)


def tell(line: str) -> None:
    """Say something beside the training's progress bar, which draws itself anew below it."""
    erase = "\r\x1b[K" if sys.stderr.isatty() else ""
    print(f"{erase}train: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
