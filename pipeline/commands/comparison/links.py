"""Links to MLflow runs. A store that cannot be used costs one note."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.commands.comparison.runs import Run
from pipeline.params import DEFAULTS
from pipeline.runtime.files import sha256_file


def links(runs: Sequence[Run], root: Path) -> tuple[dict[str, Any], str]:
    """Return (name, URL) in MLflow of each run, and a note about these links.

    A run is found by its parameters and the sha256 of its model file.
    """
    # MLflow takes seconds to import.
    from pipeline.tracking.address import StoreError  # noqa: PLC0415
    from pipeline.tracking.client import existing_store  # noqa: PLC0415

    try:
        store = existing_store(root)
        tracked = store.runs() if store else []
    except StoreError as error:
        return {}, f"no links to runs: {error}"
    if not store or not tracked:
        return {}, "no runs yet; `python -m pipeline log-all` uploads them"
    known = {}
    for entry in sorted(tracked, key=lambda entry: entry.info.status == "FINISHED"):
        key = _key(entry.data.params, entry.data.tags.get("model.sha256", ""))
        known[key] = (entry.info.run_name, store.url(entry))
    cached = [run for run in runs if run.model.is_file()]
    found = {run.name: known.get(_key(run.params, sha256_file(run.model))) for run in cached}
    return found, "links to runs of the local store work while `make ui` runs"


def _key(params: Mapping[str, object], model_sha256: str) -> frozenset[object]:
    return frozenset(
        [model_sha256, *((key, str(value)) for key, value in {**DEFAULTS, **params}.items())]
    )
