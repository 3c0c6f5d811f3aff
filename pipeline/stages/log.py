"""Stage `log`: upload what the other stages wrote to one MLflow run.

Files are the source of truth: the run is found by its results and completed from the files. Logging
again changes nothing. An unreachable store fails nothing, because DVC would discard the experiment.
"""

import sys

from pipeline.errors import run
from pipeline.paths import LOGGED
from pipeline.runtime.files import home, write_output
from pipeline.runtime.git import here
from pipeline.runtime.pending_run import mark_failure
from pipeline.tracking.results import read_results


@mark_failure()
def main() -> None:
    """Log the working directory and write the stage's output."""
    results = read_results()
    try:
        # MLflow takes seconds to import: an invalid file is reported before.
        from pipeline.tracking.client import open_store  # noqa: PLC0415
        from pipeline.tracking.log_run import log_run  # noqa: PLC0415

        print(f"log: {log_run(open_store(home()), results, here())}")
    except Exception as error:  # whatever MLflow and what it imports may raise
        advice = "the results are in the files: run `python -m pipeline log-all` once that works"
        print(f"log: not in MLflow ({error}); {advice}", file=sys.stderr)
    # Always the same bytes: a run's id would return from DVC's run-cache for another experiment.
    write_output(LOGGED, b"The stage `log` was executed here.\n")


if __name__ == "__main__":
    run(main)
