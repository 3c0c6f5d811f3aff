"""The MLflow run of an experiment: its name, and where a person sees it. A store that is away costs one note."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from pipeline.errors import InputError
from pipeline.tracking.results import MODEL, read_execution
from pipeline.tracking.server import StoreError

LOCAL = "http://127.0.0.1:5000"  # `make ui`

Run = Any  # MLflow's: only its doors import it


class Entry(NamedTuple):
    """A run in MLflow."""

    name: str
    id: str
    link: str


class Tracker:
    """The runs of the store, asked for once. `note` says why there are none."""

    def __init__(self, root: Path) -> None:
        from pipeline.tracking.client import existing_store  # noqa: PLC0415  (MLflow takes seconds to import)

        self.runs: list[Run] = []
        self.address, self.note = LOCAL, ""
        try:
            if store := existing_store(root):
                self.runs = store.runs()
                self.address = seen_at(store.uri)
        except StoreError as error:
            self.note = f"MLflow's store cannot be used ({error}): runs are not linked to"
        if not (self.runs or self.note):
            self.note = "MLflow has no runs; `python -m pipeline.stages.log --all` logs what DVC has"

    @property
    def is_local(self) -> bool:
        """Whether the links want `make ui`."""
        return self.address == LOCAL

    def find(self, folder: Path, experiment: str) -> Entry | None:
        """The run of the execution whose files are in `folder`: by its results, its experiment, or its model."""
        from pipeline.tracking.client import experiments_of  # noqa: PLC0415

        results, model = _results(folder), folder / MODEL
        sha256 = hashlib.sha256(model.read_bytes()).hexdigest() if model.is_file() else None
        wanted = (
            lambda run: results is not None and run.data.tags.get("results.sha256") == results,
            lambda run: experiment in experiments_of(run),
            lambda run: sha256 is not None and run.data.tags.get("model.sha256") == sha256,
        )
        for is_wanted in wanted:
            found = [run for run in self.runs if is_wanted(run)]
            if found:
                run = min(found, key=lambda run: (run.info.status != "FINISHED", run.info.start_time))
                link = f"{self.address}/#/experiments/{quote(run.info.experiment_id)}/runs/{quote(run.info.run_id)}"
                return Entry(str(run.info.run_name), str(run.info.run_id), link)
        return None


def _results(folder: Path) -> str | None:
    """What the run of these files is tagged with; None where they are another version's, or not all there."""
    try:
        return read_execution(folder).results
    except InputError:
        return None


def seen_at(uri: str) -> str:
    """The address at which a person sees the runs of a store: a server's own, without a password, or `make ui`'s."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return LOCAL
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
