"""Records of executions that have no complete MLflow run yet."""

import os

from pipeline.runtime.pending_run import PendingRun, find_pending


def test_the_newest_of_several_records_of_the_same_model_is_found(workplace):
    """Two executions, of which one changed a parameter without effect on the weights."""
    for time, execution in ((2, "a" * 32), (1, "b" * 32), (3, "0" * 32)):
        record = PendingRun("", "f" * 64, {}, execution, model_sha256="m" * 64)
        record.save()
        os.utime(record.path, (time, time))
    found = find_pending(experiment="", model_sha256="m" * 64)
    assert found and found.execution == "0" * 32
    found.remove()
    found = find_pending(experiment="", model_sha256="m" * 64)
    assert found and found.execution == "a" * 32
