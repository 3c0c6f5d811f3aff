import csv
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import set_params

from pipeline import evaluate, judge, sharing, train
from pipeline.errors import InputError
from pipeline.evaluation import bounds as metrics, classifier
from pipeline.evaluation.binarization import binarize, digest
from pipeline.runtime.device import one_thread
from pipeline.data.mnist import load_images
from pipeline.model.vae import load_model

IN_NATS = ["neg_elbo", "recon", "kl", "nll", "nll_binarized"]
RAW = Path("data/raw")


@pytest.fixture
def trained(workplace) -> Path:
    train.main()
    judge.main()
    return workplace


def table(name: str) -> list[dict[str, float]]:
    with Path("reports", name).open(encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_what_it_writes_agrees_with_the_core_and_with_itself(trained):
    evaluate.main()
    (name, test), *more = json.loads(Path("reports/metrics.json").read_text()).items()
    assert name == "test" and not more and test["num_images"] == 200
    model, _ = load_model(Path("data/model/vae.safetensors"))
    images = load_images(RAW, "test")

    file = pyarrow.parquet.read_table("reports/per_image.parquet")
    assert file.column_names == IN_NATS and file.num_rows == 200
    assert json.loads(file.schema.metadata[b"protocol"]) == {
        "images": digest(images), "binarization": digest(binarize(images)),
        "eval_samples": 20, "eval_proposal_scale": 1.4,
    }  # fmt: skip
    bound = metrics.elbo(model, images)
    assert file["recon"].to_numpy().tolist() == bound.recon.tolist()
    for column in IN_NATS:
        values = file[column].to_numpy().astype("float64")
        assert test[column] == pytest.approx(values.mean(), rel=1e-12)
        assert test[f"{column}_se"] == pytest.approx(values.std(ddof=1) / math.sqrt(200), rel=1e-12)
    assert test["neg_elbo"] == pytest.approx(test["recon"] + test["kl"], rel=1e-6)
    assert test["jensen_gap"] == pytest.approx(test["neg_elbo"] - test["nll"], rel=1e-6)
    parts = test["mutual_information"] + test["total_correlation"] + test["dimension_wise_kl"]
    assert parts == pytest.approx(test["kl"], abs=1.0), "the split, as far as one z an image says it"

    curve = table("bound.csv")
    assert [row["k"] for row in curve] == [1, 10, 20]
    last = {"widened": "nll", "plain": "neg_iwae", "prior": "nll_prior"}
    for name, metric in last.items():
        assert (curve[-1][name], curve[-1][f"{name}_se"]) == (test[metric], test[f"{metric}_se"])
    dimensions = table("kl_per_dimension.csv")
    assert sorted(row["dimension"] for row in dimensions) == [0, 1, 2, 3]
    assert [row["kl"] for row in dimensions] == sorted((row["kl"] for row in dimensions), reverse=True)
    assert sum(row["kl"] for row in dimensions) == pytest.approx(test["kl"], rel=1e-5)
    assert sum(row["active"] for row in dimensions) == test["active_units"]
    classes = table("classes.csv")
    assert [row["digit"] for row in classes] == list(range(10))
    assert sum(row["samples"] for row in classes) == pytest.approx(1) == pytest.approx(sum(r["test"] for r in classes))
    seen = classifier.judge(classifier.load_classifier(judge.JUDGE), images).classes
    assert [row["test"] for row in classes] == (np.bincount(seen, minlength=10) / 200).tolist()


def test_the_same_inputs_give_the_same_bytes_with_any_share_of_the_cores(trained, monkeypatch):
    evaluate.main()
    before = {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()}
    torch.manual_seed(5)
    monkeypatch.setattr(sharing, "_available", lambda: 3)
    with one_thread():
        torch.set_num_threads(3)
        evaluate.main()
        assert sharing.share_of_cores(Path.cwd(), 3) == 3
    assert {path: path.read_bytes() for path in before} == before


def test_without_widening_nll_is_the_plain_bound(trained):
    set_params(trained, {"eval_proposal_scale": 1, "eval_samples": 1})
    evaluate.main()
    test = json.loads(Path("reports/metrics.json").read_text())["test"]
    assert test["nll"] == test["neg_iwae"] and test["ess"] == 1
    assert [row["k"] for row in table("bound.csv")] == [1]


@pytest.mark.parametrize(("path", "command"), [("model/vae", "train"), ("judge/judge", "judge")])
def test_what_is_missing_is_named_with_the_command_that_makes_it(trained, path, command):
    Path(f"data/{path}.safetensors").unlink()
    with pytest.raises(InputError, match=rf"^data/{path}.safetensors: cannot be read; `dvc repro {command}` makes it$"):
        evaluate.main()


def test_labels_that_do_not_belong_to_the_images_are_refused(trained):
    labels = RAW / "t10k-labels-idx1-ubyte"
    content = labels.read_bytes()
    labels.write_bytes(content[:4] + (199).to_bytes(4, "big") + content[8:-1])
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte: must hold a label for each of 200 images, not 199"):
        evaluate.main()
