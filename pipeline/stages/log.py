"""Stage `log`: upload what the other stages wrote to one MLflow run.

Files are the truth: the run is found by its results and completed from the files. Logging again
changes nothing. An unreachable store fails nothing, because DVC would discard the experiment.
"""

import os
import sys

from pipeline.errors import UserError, run, writing
from pipeline.paths import LOGGED
from pipeline.runtime.files import home
from pipeline.runtime.git import Source, here
from pipeline.runtime.pending_run import remove_checkpoint
from pipeline.tracking.results import Results, read_results


def main() -> None:
    """Log the working directory and write the stage's output."""
    results = read_results()
    remove_checkpoint(os.environ.get("DVC_EXP_NAME", ""), results.model_sha256)
    try:
        print(f"log: {upload(results)}")
    except UserError as error:
        print(
            f"log: not in MLflow ({error}); the results are in the files: "
            "run `python -m pipeline log-all` when MLflow works",
            file=sys.stderr,
        )
    # Always the same bytes: a run's id would return from DVC's run-cache for another experiment.
    with writing(LOGGED):
        LOGGED.parent.mkdir(parents=True, exist_ok=True)
        LOGGED.write_text("The stage `log` was executed here.\n", encoding="utf-8")


def upload(results: Results) -> str:
    """Make MLflow have one complete run of the results; return what was done, in words."""
    # MLflow takes seconds to import: an invalid file is reported before.
    from pipeline.tracking.client import open_store  # noqa: PLC0415
    from pipeline.tracking.log_run import log_run  # noqa: PLC0415

    return log_run(open_store(home()), results, source())


def source() -> Source:
    """The code in git. If git fails, the run is logged nevertheless."""
    try:
        return here()
    except UserError as error:
        print(f"log: {error}; the run may lack its commit", file=sys.stderr)
        return Source(os.environ.get("DVC_EXP_NAME", ""), "", "")


if __name__ == "__main__":
    run(main)
