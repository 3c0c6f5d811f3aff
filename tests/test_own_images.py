"""One's own images through the whole pipeline, as a user runs it: git, DVC and MLflow."""

import numpy as np
import pytest
from helpers.repo import Repo, plant, started

from pipeline.paths import MODEL
from pipeline.runtime.tensor_file import read_header

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repo(small_mnist, tmp_path_factory) -> Repo:
    """A repository for 9 x 11 images without labels, in which `dvc repro` ran; committed."""
    changes = {"dataset": "own", "val_size": 20, "num_epochs": 1}
    repo = plant(tmp_path_factory.mktemp("own"), small_mnist, **changes)
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (120, 9, 11), dtype="uint8")
    np.savez(repo.root / "data/own/images.npz", images=images)
    repo.run("dvc", "repro")
    repo.commit()
    return repo


def test_the_images_are_not_committed_and_an_experiment_elsewhere_reports_it(repo):
    assert repo.run("git", "ls-files", "data").split() == ["data/own/.gitignore"]
    repo.run("dvc", "exp", "run", "-n", "here", "-S", "z_dim=2")
    repo.run("git", "checkout", "-q", ".")
    repo.run("dvc", "checkout", "-q")
    output = repo.run("dvc", "exp", "run", "--temp", "-S", "z_dim=3", ok=False)
    assert "data/own: has no images: " in output


def test_images_that_dvc_tracks_are_in_every_experiment(repo):
    repo.run("dvc", "add", "data/own/images.npz")
    repo.run("dvc", "repro")
    repo.commit()
    output = repo.run("dvc", "exp", "run", "--temp", "-n", "there", "-S", "z_dim=5")
    assert {"train", "evaluate"} <= {*started(output)}
    assert "there" in repo.pipeline("compare")
    repo.pipeline("log-all")
    assert "no problems" in repo.pipeline("doctor")
    assert "reproduce: identical" in repo.pipeline("reproduce", "there")


def test_other_images_are_another_dataset(repo):
    np.savez(repo.root / "data/own/images.npz", images=np.zeros((120, 8, 8), "uint8"))
    assert started(repo.run("dvc", "repro", "train")) == ["download", "train"]
    assert read_header(repo.root / MODEL)["architecture"]["image_shape"] == [8, 8]
