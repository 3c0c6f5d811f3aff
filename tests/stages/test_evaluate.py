import json
import math

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from conftest import error_about, set_params
from helpers.models import documented, small_vae
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from pipeline import paths
from pipeline.data.datasets import binarize, digest, load_split, save_dataset
from pipeline.errors import UserError
from pipeline.evaluation import bounds
from pipeline.evaluation.classifier import classify, load_classifier
from pipeline.evaluation.sample_quality import prdc
from pipeline.figures.grids import save_grid
from pipeline.figures.samples import generate
from pipeline.model import likelihood
from pipeline.model.likelihood import LIKELIHOODS
from pipeline.model.vae import load_vae, save_vae
from pipeline.runtime import cores
from pipeline.runtime.files import sha256_file
from pipeline.stages import evaluate, train_classifier
from pipeline.tracking.results import read_results

IN_NATS = ["neg_elbo", "recon", "kl", "nll", "nll_binarized"]


def read_metrics() -> dict[str, float]:
    return json.loads(paths.EVALUATION.read_text())["test"]


def test_evaluation_json_has_the_means_of_per_image_values_with_standard_errors(finished):
    metrics, table = read_metrics(), pyarrow.parquet.read_table(paths.PER_IMAGE)
    assert "bits_per_dim" not in metrics, "the cross-entropy of gray values is no density"
    assert table.column_names == IN_NATS and table.num_rows == metrics["num_images"] == 200
    split, model = load_split(paths.DATASET, "test"), load_vae(paths.MODEL)
    assert json.loads(table.schema.metadata[b"protocol"]) == {
        "images": digest(split.images),
        "binarization": digest(binarize(split.images)),
        "eval_samples": 20,
        "eval_proposal_scale": 1.4,
        "likelihood": "bernoulli",
    }
    assert table["recon"].to_pylist() == bounds.elbo(model, split)[0].recon.tolist()
    for column in IN_NATS:
        values = table[column].to_numpy().astype("float64")
        error = values.std(ddof=1) / math.sqrt(200)
        assert metrics[column] == pytest.approx(values.mean(), rel=1e-12)
        assert metrics[f"{column}_se"] == pytest.approx(error, rel=1e-12)


def test_metrics_and_tables_agree(finished):
    metrics = read_metrics()
    headline = {name: metrics[name] for name in evaluate.HEADLINE}
    assert json.loads(paths.METRICS.read_text()) == {"test": headline}
    assert metrics["neg_elbo"] == pytest.approx(metrics["recon"] + metrics["kl"], rel=1e-6)
    gap = metrics["neg_elbo"] - metrics["nll"]
    assert metrics["jensen_gap"] == pytest.approx(gap, rel=1e-6)
    parts = ("mutual_information", "total_correlation", "dimension_wise_kl")
    assert sum(metrics[part] for part in parts) == pytest.approx(metrics["kl"], abs=1.0)
    bound = pd.read_csv(paths.BOUND)
    assert bound.k.tolist() == [1, 10, 20]
    for name, metric in (("widened", "nll"), ("plain", "neg_iwae"), ("prior", "nll_prior")):
        assert bound[name].iloc[-1] == metrics[metric]
        assert bound[f"{name}_se"].iloc[-1] == metrics[f"{metric}_se"]
    kl = pd.read_csv(paths.KL_PER_DIMENSION)
    assert kl["rank"].tolist() == [1, 2, 3, 4] and sorted(kl.dimension) == [0, 1, 2, 3]
    assert kl.kl.is_monotonic_decreasing and kl.active.sum() == metrics["active_units"]
    assert kl.kl.sum() == pytest.approx(metrics["kl"], rel=1e-5)


def test_classes_of_samples_and_images_are_shares(finished):
    table = pd.read_csv(paths.CLASSES)
    images = load_split(paths.DATASET, "test").images
    predicted = classify(load_classifier(paths.CLASSIFIER), images).classes
    assert table.label.tolist() == list(range(10))
    assert table.test.tolist() == (np.bincount(predicted, minlength=10) / 200).tolist()
    assert table.samples.sum() == pytest.approx(1)


def test_equal_inputs_give_equal_bytes_with_any_share_of_the_cores(
    finished, monkeypatch, set_threads
):
    before = {path: path.read_bytes() for path in finished.glob("reports/**/*.*")}
    torch.manual_seed(5)
    monkeypatch.setattr(cores, "available_cores", lambda: 3)
    set_threads(3)
    evaluate.main()
    assert [path.name for path in before if path.read_bytes() != before[path]] == []


def test_without_widening_nll_is_the_plain_bound(finished, capsys):
    set_params(finished, {"eval_proposal_scale": 1, "eval_samples": 1})
    evaluate.main()
    metrics = read_metrics()
    assert metrics["nll"] == metrics["neg_iwae"] and metrics["ess"] == 1
    assert pd.read_csv(paths.BOUND).k.tolist() == [1]
    output = capsys.readouterr().out
    assert output.isascii() and "+/-" in output and "python -m pipeline compare" in output


@pytest.mark.parametrize("path", [paths.MODEL, paths.CLASSIFIER, paths.DATASET])
def test_a_missing_input_is_named(finished, path):
    path.unlink()
    with pytest.raises(UserError) as error:
        evaluate.main()
    assert error.value.subject == str(path)


BROKEN = {
    "decoder.0.weight": math.nan,
    "encoder.2.bias": 1e30,  # the mean and the variance
    "decoder.2.bias": math.inf,
}


@pytest.mark.parametrize(("name", "value"), BROKEN.items())
def test_a_model_that_has_diverged_is_one_message(finished, name, value):
    model = small_vae()
    with torch.no_grad():
        model.network.get_parameter(name).fill_(value)
    save_vae(model, paths.MODEL, {})
    with error_about("params.yaml: learning_rate"):
        evaluate.main()


def test_a_conditional_convolutional_network_with_another_likelihood_is_evaluated(
    finished, monkeypatch
):
    monkeypatch.setitem(LIKELIHOODS, "laplace", documented(likelihood)["Laplace"])
    model = small_vae(network="conv", likelihood="laplace", num_classes=10)
    save_vae(model, paths.MODEL, {})
    evaluate.main()
    metrics, table = read_metrics(), pyarrow.parquet.read_table(paths.PER_IMAGE)
    assert all(map(math.isfinite, metrics.values()))
    protocol = json.loads(table.schema.metadata[b"protocol"])
    assert (protocol["likelihood"], protocol["measure"]) == ("laplace", "lebesgue")
    bits = metrics["nll"] / math.log(2) / 784 + math.log2(255)
    assert metrics["bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    assert 0 <= metrics["label_agreement"] <= 1
    assert Image.open(paths.GENERATED).size == (16 * 29 + 1, 10 * 29 + 1), "one row per class"


def test_binary_images_are_measured_if_training_uses_them(finished):
    """By the binarization of nll_binarized. Samples are always compared with the gray images."""
    before = read_metrics()
    set_params(finished, {"binarize": "dynamic"})
    evaluate.main()
    metrics, table = read_metrics(), pyarrow.parquet.read_table(paths.PER_IMAGE)
    protocol = json.loads(table.schema.metadata[b"protocol"])
    binary = digest(binarize(load_split(paths.DATASET, "test").images))
    assert protocol["images"] == protocol["binarization"] == binary
    assert protocol["measure"] == "binary pixels"
    assert metrics["nll"] == pytest.approx(metrics["nll_binarized"], rel=1e-3)
    same = ("nll_binarized", "frechet_distance", "precision", "coverage")
    assert [metrics[name] for name in same] == [before[name] for name in same]
    assert metrics["nll"] != before["nll"] and metrics["knn_accuracy"] != before["knn_accuracy"]
    shown = np.asarray(Image.open(paths.RECONSTRUCTED))[1:29, 1:29]
    assert set(shown.flatten()) == {0, 255}


def test_without_labels_what_needs_them_is_left_out(finished, small_train, small_test):
    before = read_metrics()
    splits = {"train": small_train, "test": small_test}
    images = {name: (split.images.view(-1, 28, 28), None) for name, split in splits.items()}
    save_dataset(paths.DATASET, "own", images)
    train_classifier.main()
    evaluate.main()
    metrics = read_metrics()
    needed = {"frechet_distance", "precision", "recall", "density", "coverage"}
    needed |= {name for name in before if "accuracy" in name}
    assert metrics == {name: before[name] for name in before if name not in needed}
    assert paths.CLASSES.read_text() == "label,samples,test\n"
    results = read_results()
    assert results.classifier_sha256 == sha256_file(paths.CLASSIFIER)
    assert "frechet_distance" not in json.loads(paths.METRICS.read_text())["test"]
    assert (paths.FIGURES / "interpolations.png").exists()


def test_samples_are_scored_as_samples_and_not_as_real_images(finished):
    metrics, split = read_metrics(), load_split(paths.DATASET, "test")
    images = generate(load_vae(paths.MODEL), split.labels), split.images
    fake, real = (classify(load_classifier(paths.CLASSIFIER), each).features for each in images)
    scores = prdc(real, fake)
    assert scores == {name: metrics[name] for name in scores} != prdc(fake, real)


def test_the_probes_are_trained_on_the_training_images(finished):
    splits = [load_split(paths.DATASET, name) for name in ("train", "test")]
    codes = [bounds.encode(load_vae(paths.MODEL), split).mu.double().numpy() for split in splits]
    train, test = ((code, split.labels.numpy()) for code, split in zip(codes, splits, strict=True))
    expected = KNeighborsClassifier(15, algorithm="brute").fit(*train).score(*test)
    assert read_metrics()["knn_accuracy"] == pytest.approx(expected)


def test_the_pictures_are_of_128_samples_and_of_the_first_test_images(finished):
    save_grid(
        generate(load_vae(paths.MODEL), torch.zeros(128)), (28, 28), finished / "expected.png"
    )
    assert paths.GENERATED.read_bytes() == (finished / "expected.png").read_bytes()
    shown = torch.tensor(np.asarray(Image.open(paths.RECONSTRUCTED)))
    originals = shown[1:, 1:].unfold(0, 28, 29).unfold(1, 28, 57).flatten(0, 1).flatten(1)
    assert torch.equal(originals, load_split(paths.DATASET, "test").images[:64])


def test_samples_of_a_conditional_model_have_the_labels_of_the_test_images(finished):
    model = small_vae(num_classes=10)
    with torch.no_grad():
        model.network.decoder[0].weight *= 20  # the label matters
    save_vae(model, paths.MODEL, {})
    evaluate.main()
    labels = load_split(paths.DATASET, "test").labels
    found = classify(load_classifier(paths.CLASSIFIER), generate(model, labels)).classes
    assert len(found.unique()) > 2
    assert read_metrics()["label_agreement"] == (found == labels).double().mean()
