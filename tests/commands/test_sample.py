"""`python -m pipeline sample` over experiments whose models are in DVC's cache."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import error_about
from helpers.fake_experiments import FakeExperiments
from helpers.models import small_vae

from pipeline.__main__ import main
from pipeline.errors import UserError
from pipeline.figures.grids import save_grid
from pipeline.figures.samples import generate
from pipeline.model.vae import VAE, save_vae

PLAIN, CONDITIONAL = small_vae(), small_vae(num_classes=8)


@pytest.fixture
def repo(tmp_path, monkeypatch) -> FakeExperiments:
    """HEAD has an unconditional model, the experiment `labels` a conditional one."""
    repo = FakeExperiments(tmp_path / "repo")
    repo.commit(with_model(repo, PLAIN))
    repo.experiment("labels", with_model(repo, CONDITIONAL, z_dim=4))
    repo.experiment("lost", repo.files(z_dim=5))
    cached(repo, repo.files(z_dim=5)).unlink()
    monkeypatch.chdir(repo.root)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return repo


def cached(repo: FakeExperiments, files: dict[str, bytes]) -> Path:
    (model,) = yaml.safe_load(files["dvc.lock"])["stages"]["train"]["outs"]
    return repo.root / ".dvc/cache/files/md5" / model["md5"][:2] / model["md5"][2:]


def with_model(repo: FakeExperiments, model: VAE, **params: object) -> dict[str, bytes]:
    files = repo.files(**params)
    save_vae(model, cached(repo, files), {})
    return files


def sample(monkeypatch, arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pipeline", "sample", *arguments.split()])
    main()


GRIDS = {
    "labels --label 7 -n 30": (CONDITIONAL, torch.full((30,), 7), 0),
    "labels -n 20 --seed 3": (CONDITIONAL, torch.arange(20) % 8, 3),
    "HEAD": (PLAIN, torch.zeros(128), 0),
    "workspace -n 1": (PLAIN, torch.zeros(1), 0),
}


@pytest.mark.parametrize("arguments", GRIDS)
def test_the_file_has_the_images_of_the_model(repo, monkeypatch, capsys, arguments):
    Path("sevens.png").write_bytes(b"old")
    sample(monkeypatch, f"{arguments} -o sevens.png")
    model, labels, seed = GRIDS[arguments]
    save_grid(generate(model.eval(), labels, seed), (28, 28), Path("expected.png"))
    assert Path("sevens.png").read_bytes() == Path("expected.png").read_bytes()
    assert f"{len(labels)} images" in capsys.readouterr().out


REFUSED = {
    "labels --label 8": "--label", "labels --label -1": "--label", "HEAD --label 7": "--label",
    "labels -n 0": "-n", "labels -n 10001": "-n", "labels -o sevens.jpg": "sevens.jpg",
    "lost": "lost", "unknown": "unknown",
}  # fmt: skip


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_drawn_is_one_error_and_no_file(repo, monkeypatch, arguments):
    before = set(repo.root.iterdir())
    with error_about(REFUSED[arguments]):
        sample(monkeypatch, arguments)
    assert set(repo.root.iterdir()) == before


def test_a_model_that_is_not_in_the_cache_is_refused_with_the_commands_that_bring_it(
    repo, monkeypatch
):
    commit = repo.git("for-each-ref", "--format=%(objectname)", "refs/exps/*/*/lost")[:10]
    with pytest.raises(UserError, match=f"dvc exp apply {commit}`, then `dvc pull` or `dvc repro`"):
        sample(monkeypatch, "lost")
