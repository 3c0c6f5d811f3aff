"""The judge: the same bytes everywhere, and a file that is the judge and nothing else."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import InputError
from pipeline.evaluation import classifier
from pipeline.evaluation.classifier import (
    FEATURES,
    Classifier,
    judge,
    load_classifier,
    new_classifier,
    save_classifier,
    train_classifier,
)
from pipeline.data.mnist import load_images, load_labels, to_unit

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def labels(small_mnist):
    return load_labels(small_mnist, "train")


@pytest.fixture(scope="module")
def trained(small_images, labels) -> Classifier:
    """A judge that has seen 600 images, which is enough for four out of five."""
    model = new_classifier()
    list(train_classifier(model, small_images, labels, num_epochs=8))
    return model


def test_it_learns_from_few_images_what_holds_for_others(trained, small_mnist):
    found = judge(trained, load_images(small_mnist, "test"))
    assert (found.classes == load_labels(small_mnist, "test")).double().mean() > 0.8


def test_shapes(trained, small_images):
    features, classes = judge(trained, small_images[:7])
    assert features.shape == (7, FEATURES) and features.dtype == torch.float32 and (features >= 0).all()
    assert classes.shape == (7,) and classes.dtype == torch.int64
    x = to_unit(small_images[:7])
    with torch.no_grad():
        assert trained(x).shape == (7, 10)
        assert torch.equal(trained(x).argmax(dim=-1), classes)
        assert torch.equal(trained.features(x), features)


def test_bytes_and_what_they_stand_for_are_judged_alike(trained, small_images):
    for ours, theirs in zip(judge(trained, small_images), judge(trained, to_unit(small_images)), strict=True):
        assert torch.equal(ours, theirs)


def test_an_image_is_judged_alike_in_any_chunk_and_company(trained, small_images, monkeypatch):
    whole = judge(trained, small_images)
    for chunk in (1, 7, 64, 600):
        monkeypatch.setattr(classifier, "CHUNK", chunk)
        found = judge(trained, small_images[:130])
        torch.testing.assert_close(found.features, whole.features[:130], rtol=1e-5, atol=1e-5)
        assert torch.equal(found.classes, whole.classes[:130])


def test_records_tell_of_every_epoch_and_the_loss_falls(small_images, labels):
    records = list(train_classifier(new_classifier(), small_images, labels, num_epochs=3))
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert records[2]["loss"] < records[0]["loss"] and records[2]["accuracy"] > records[0]["accuracy"]


def test_a_seed_is_a_judge(small_images, labels):
    def weights(seed: int) -> torch.Tensor:
        model = new_classifier(seed)
        list(train_classifier(model, small_images[:150], labels[:150], num_epochs=1, seed=seed))
        return torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize("n", [2, 129, 257])
def test_no_number_of_images_leaves_a_batch_of_one(small_images, labels, n):
    assert len(list(train_classifier(new_classifier(), small_images[:n], labels[:n], num_epochs=1))) == 1


def test_what_nothing_can_be_learnt_from_is_refused(small_images, labels):
    for images, of in ((small_images[:1], labels[:1]), (small_images[:9], labels[:8])):
        with pytest.raises(ValueError, match="two images or more"):
            next(train_classifier(new_classifier(), images, of))


def test_the_number_of_threads_is_given_back(small_images, labels):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        model = new_classifier()
        next(train_classifier(model, small_images[:9], labels[:9]))
        judge(model, small_images[:9])
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_file_gives_the_judge_back(tmp_path, trained, small_images):
    path = tmp_path / "judge.safetensors"
    save_classifier(trained, path)
    loaded = load_classifier(path)
    assert not loaded.training
    for ours, theirs in zip(judge(loaded, small_images), judge(trained, small_images), strict=True):
        assert torch.equal(ours, theirs)


def test_the_bytes_and_the_features_are_the_same_in_every_process_whatever_its_threads(tmp_path, small_mnist):
    code = """if True:
        import hashlib, sys; from pathlib import Path
        from pipeline.evaluation.classifier import judge, new_classifier, save_classifier, train_classifier
        from pipeline.data.mnist import load_images, load_labels
        folder, path = Path(sys.argv[1]), Path(sys.argv[2])
        images, model = load_images(folder, "train"), new_classifier()
        list(train_classifier(model, images, load_labels(folder, "train"), num_epochs=2))
        save_classifier(model, path)
        print(hashlib.sha256(path.read_bytes() + judge(model, images).features.numpy().tobytes()).hexdigest())
    """
    said = set()
    for name, threads in (("a", 1), ("b", 2)):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", code, small_mnist, tmp_path / name]
        said.add(subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True).stdout)
    assert len(said) == 1


class Planted:
    def __reduce__(self):
        return (Path("planted").write_text, ("executed",))


def bad_files(path):
    """Each way to be no judge of this project, written to `path`."""
    yield "nothing there", lambda: path.unlink(missing_ok=True)
    yield "random bytes", lambda: path.write_bytes(bytes(range(256)) * 8)
    yield "empty", lambda: path.write_bytes(b"")
    yield "a pickle", lambda: path.write_bytes(pickle.dumps(Planted()))
    yield "a torch pickle", lambda: torch.save(Planted(), path)
    weights, header = Classifier().state_dict(), json.dumps({"features": FEATURES})
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    yield "no header", lambda: save_file(weights, path)
    yield "a header that is no JSON", lambda: save_file(weights, path, metadata={"judge": "{"})
    yield "another header", lambda: save_file(weights, path, metadata={"judge": json.dumps({"features": 65})})
    yield "a VAE", lambda: save_file(weights, path, metadata={"vae": header})
    yield "other weights", lambda: save_file({"w": torch.zeros(2)}, path, metadata={"judge": header})
    rest = {name: tensor for name, tensor in weights.items() if name != "head.bias"}
    yield "a weight too few", lambda: save_file(rest, path, metadata={"judge": header})


@pytest.mark.parametrize("kind", [kind for kind, _ in bad_files(Path("x"))])
def test_what_is_no_judge_is_refused_in_one_line_and_nothing_is_executed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "judge.safetensors"
    dict(bad_files(path))[kind]()
    with pytest.raises(InputError) as caught:
        load_classifier(path)
    assert "judge.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    assert "`dvc repro judge` makes it" in str(caught.value)
    assert not Path("planted").exists()
