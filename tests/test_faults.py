"""The short form of benchmarks/faults.py: kills at random moments end in the same bytes and the same run.

FAULTS of them, from FAULTS_SEED; every combination of mode and target comes up in the long form.
"""

import os

import pytest
from helpers.kill_campaign import Campaign, run


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, mnist) -> Campaign:
    return Campaign(tmp_path_factory.mktemp("faults") / "campaign", mnist)


def test_kills_at_random_moments_end_in_the_reference(campaign, capsys):
    count, seed = int(os.environ.get("FAULTS", "4")), int(os.environ.get("FAULTS_SEED", "0"))
    outcomes = []
    for outcome in run(campaign, count, seed):
        outcomes.append(outcome)
        with capsys.disabled():
            print(f"FAULTS_SEED={seed} {outcome}")
        assert outcome.same_lock and outcome.one_run
        assert outcome.orphan < 2
    assert len(outcomes) == count
