"""The experiment in MLflow's store, and how its runs are found.

`MLFLOW_EXPERIMENT_NAME` names another experiment. The artifacts of an sqlite database are in
`mlartifacts/` beside its file: MLflow freezes their place when the experiment is created.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.file_utils import get_local_path_or_none
from requests import HTTPError
from sqlalchemy.engine import make_url

from pipeline.tracking import address
from pipeline.tracking.address import DATABASES, TYPED, StoreError, scheme, store_errors

REFUSED = (401, 403, 404, 405, 501)  # HTTP status: no permission, or no such feature
# The UI's table shows neither parameters nor metrics unless each is selected; this view has them.
# Its form is not documented: a version of MLflow that does not know it ignores it.
SHOWN = ("nll", "neg_elbo", "recon", "kl", "active_units", "frechet_distance")
COLUMNS = [f"metrics.`test/{name}`" for name in SHOWN]
COLUMNS += [f"params.`{name}`" for name in ("z_dim", "h_dim", "num_epochs", "seed")]
VIEW = {"orderByKey": COLUMNS[0], "orderByAsc": True, "selectedColumns": COLUMNS}
MAX_RUNS = 50_000  # that MLflow returns
LOCAL_UI = "http://127.0.0.1:5000"  # `make ui`


@contextmanager
def optional(part: str, left_out: list[str]) -> Iterator[None]:
    """Append `part` to `left_out` if the store refuses what the block does: it always would."""
    try:
        yield
    except Exception as error:
        if not _is_refusal(error):
            raise
        left_out.append(part)


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, RestException) and "error_code" not in error.json:
        return True  # not MLflow's answer: the server does not know the request
    if isinstance(error, MlflowException):
        return error.get_http_status_code() in REFUSED
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code in REFUSED
    return isinstance(error, PermissionError)


class Store:
    """An MLflow store and the experiment in it. Its methods raise StoreError if they fail."""

    def __init__(self, client: MlflowClient, experiment_id: str, uri: str) -> None:
        self.client = client
        self.experiment_id = experiment_id
        self.uri = uri

    @store_errors()
    def find(self, tag: str, value: str) -> Run | None:
        """A run whose tag has this value: a finished one if there is one, then the oldest."""
        runs = self.client.search_runs([self.experiment_id], f"tags.`{tag}` = '{value}'")
        runs.sort(key=lambda run: (run.info.status != "FINISHED", run.info.start_time))
        return next(iter(runs), None)

    @store_errors()
    def runs(self) -> list[Run]:
        """Every run of the experiment that is not deleted."""
        return list(self.client.search_runs([self.experiment_id], max_results=MAX_RUNS))

    @store_errors()
    def close(self, run_id: str, status: str, ended: int | None = None) -> None:
        """End a run: FINISHED, FAILED or KILLED. ended: in milliseconds, by default now."""
        self.client.set_terminated(run_id, status, ended)

    @store_errors()
    def tag(
        self, run: Run, tags: Mapping[str, str], params: Mapping[str, object] | None = None
    ) -> None:
        """Set tags, and parameters that cannot be changed later, in one transaction."""
        new_tags = [RunTag(key, value) for key, value in tags.items()]
        new_params = [Param(key, str(value)) for key, value in (params or {}).items()]
        self.client.log_batch(run.info.run_id, tags=new_tags, params=new_params)

    def keeps(self, run: Run) -> bool:
        """Whether the artifacts of a run are files here, not those of a server."""
        is_local = get_local_path_or_none(run.info.artifact_uri) is not None
        return is_local and scheme(self.uri) in DATABASES

    def url(self, run: Run) -> str:
        """The page of a run: on the server, or of `make ui`."""
        server = urlsplit(self.uri if scheme(self.uri) in ("http", "https") else LOCAL_UI)
        host = server.netloc.rpartition("@")[2]  # without user and password
        base = server._replace(netloc=host, path=server.path.rstrip("/")).geturl()
        path = f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        # Without workflowType the UI may open in its view for language models.
        return f"{base}/#/{path}?workflowType=machine_learning"


def experiments_of(run: Run) -> list[str]:
    """The DVC experiments of a run: the one that computed it, then those with its results."""
    # A name may have a comma, but no blank: it is part of a git ref.
    return list(filter(None, run.data.tags.get("dvc.exp_name", "").split(", ")))


@store_errors()
def open_store(root: Path) -> Store:
    """The store that the environment names, or the one in `root`; it is created if necessary."""
    with FileLock(root / ".dvc" / "tmp" / "mlflow.lock"):
        return existing_store(root) or _new_store(root)


@store_errors()
def existing_store(root: Path) -> Store | None:
    """The store that `open_store` would open; None if it would have to be created."""
    uri, file = address.locate(root)
    if file and not file.exists():
        return None
    client = address.connect(uri)
    experiment = client.get_experiment_by_name(_experiment_name())
    if experiment is None:
        return None
    if experiment.lifecycle_stage == "deleted":
        restore = f"mlflow experiments restore -x {experiment.experiment_id}"
        raise StoreError("the experiment is deleted", f"MLFLOW_TRACKING_URI={TYPED} {restore}")
    if scheme(uri) in DATABASES:
        address.check_location(experiment.artifact_location, root, file)
    return Store(client, experiment.experiment_id, uri)


def _new_store(root: Path) -> Store:
    uri, file = address.locate(root)
    if file and not file.exists():
        # Tables are created in another file: a kill leaves no incomplete database, and MLflow
        # crashes if several processes create those of one database, maybe from several clones.
        new = file.with_name(f"{file.name}.{uuid4().hex}.new")
        try:
            created = address.connect(address.sqlite_uri(make_url(uri), new))
            created.search_experiments(max_results=1)
            try:
                file.hardlink_to(new)
            except FileExistsError:
                pass  # another clone was first
            except OSError:
                new.replace(file)  # on a disk without hard links
        finally:
            new.unlink(missing_ok=True)
    client = address.connect(uri)
    folder = file.parent if file else root
    # A server knows where its artifacts go.
    location = (folder / "mlartifacts").as_uri() if scheme(uri) in DATABASES else None
    view = {"name": "Results", "createdAt": 0, "updatedAt": 0, "state": json.dumps(VIEW)}
    tags = {
        # Without this tag the UI opens the experiment in its view for language models.
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.sharedViewState.results": json.dumps(view),
    }
    try:
        return Store(client, client.create_experiment(_experiment_name(), location, tags), uri)
    except MlflowException:
        if store := existing_store(root):  # another machine has created it meanwhile
            return store
        raise


def _experiment_name() -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "mnist-vae"
