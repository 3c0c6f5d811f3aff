"""Kills at random moments end in the reference bytes and one complete MLflow run.

FAULTS of them (1), from FAULTS_SEED; benchmarks/faults.py is the long form.
"""

import os

import pytest
from helpers.kill_campaign import Campaign

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_killed_pipelines_end_in_the_reference_bytes(tmp_path, mnist, capsys):
    campaign = Campaign(tmp_path / "campaign", mnist)
    count, seed = int(os.environ.get("FAULTS", "1")), int(os.environ.get("FAULTS_SEED", "0"))
    for outcome in campaign.trials(count, seed):
        with capsys.disabled():
            print(outcome)
        assert outcome.same_lock and outcome.one_run, outcome
