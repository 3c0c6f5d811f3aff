"""Links to MLflow runs. A store that cannot be used costs one note."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

from pipeline.commands.comparison.runs import Run
from pipeline.runtime.files import sha256_file

LOCAL = "http://127.0.0.1:5000"  # `make ui`


class Link(NamedTuple):
    """An MLflow run in a browser."""

    name: str
    url: str


def links(runs: Sequence[Run], root: Path) -> tuple[dict[str, Link | None], str]:
    """Return the links of the runs that MLflow has, by name, and a note about them.

    A run is found by its parameters and the sha256 of its model file.
    """
    from pipeline.tracking.client import StoreError, existing_store  # noqa: PLC0415  (imports MLflow)

    try:
        store = existing_store(root)
        tracked = store.runs() if store else []
    except StoreError as error:
        return {}, f"no links to runs: {error}"
    if not store or not tracked:
        return {}, "no runs yet; `python -m pipeline log-all` uploads them"
    address = ui_address(store.uri)
    known = {}
    for entry in sorted(tracked, key=lambda entry: entry.info.status == "FINISHED"):
        page = f"{quote(entry.info.experiment_id)}/runs/{quote(entry.info.run_id)}"
        url = f"{address}/#/experiments/{page}?workflowType=machine_learning"
        key = _key(entry.data.params, entry.data.tags.get("model.sha256", ""))
        known[key] = Link(entry.info.run_name, url)
    cached = [run for run in runs if run.model.is_file()]
    found = {run.name: known.get(_key(run.params, sha256_file(run.model))) for run in cached}
    return found, f"links lead to {address}; `make ui` serves the local store"


def ui_address(uri: str) -> str:
    """Return where a browser shows a store: a server, without its password, or `make ui`."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return LOCAL
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def _key(params: Mapping[str, object], model_sha256: str) -> frozenset[object]:
    return frozenset([model_sha256, *zip(params, map(str, params.values()), strict=True)])
