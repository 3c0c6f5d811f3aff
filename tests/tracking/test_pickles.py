"""Nothing unpickles: a pickle that executes code, in place of any file that is read, never runs."""

import io
import os
import pickle
from pathlib import Path

import pytest
import torch

from pipeline import paths
from pipeline.errors import UserError
from pipeline.runtime.files import checkpoint_path
from pipeline.runtime.pending_run import pending_runs
from pipeline.stages import evaluate, log, train, train_classifier


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def torch_file() -> bytes:
    content = io.BytesIO()
    torch.save({"weights": Bomb()}, content)
    return content.getvalue()


BOMBS = (
    pickle.dumps(Bomb()),
    pickle.dumps(Bomb(), protocol=0),
    torch_file(),
    b"!!python/object/apply:os.mkdir [exploded]\n",
)


def attack(path: Path, stage) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for bomb in BOMBS:
        path.write_bytes(bomb)
        try:
            stage.main()
        except UserError as error:
            assert "\n" not in str(error)
            assert path.read_bytes() == bomb, "what is refused stays as it is"
        assert not Path("exploded").exists()


@pytest.mark.parametrize("stage, path", [
    (train, paths.PARAMS), (train, paths.DATASET), (train_classifier, paths.DATASET),
    (evaluate, paths.MODEL), (evaluate, paths.CLASSIFIER), (log, paths.MODEL),
    (log, paths.HISTORY), (log, paths.EVALUATION), (log, paths.CLASSIFIER_REPORT),
    (log, paths.PER_IMAGE), (log, Path("mlflow.db")),
], ids=str)  # fmt: skip
def test_pickle_in_place_of_an_input_is_refused(finished, stage, path):
    attack(path, stage)
    pickle.loads(BOMBS[0])
    assert Path("exploded").exists(), "a pickle that is read leaves a trace"


def test_pickle_in_place_of_a_pending_run_or_a_checkpoint_is_ignored(loggable):
    (record,) = pending_runs()
    attack(record.path, log)
    attack(checkpoint_path(record.fingerprint), train)
