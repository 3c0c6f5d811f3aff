"""The committed metrics, computed again from the committed run's files by independent code.

The files are in DVC's cache, not in git: they are there after `make repro`. Of the project, only
the noise, which is part of the protocol, and the features of the classifier are used.
"""

import hashlib
import json
import math

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from conftest import ROOT, committed
from safetensors.torch import load_file
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from pipeline.evaluation.classifier import classify, load_classifier
from pipeline.evaluation.importance import noise
from pipeline.params import parse_yaml
from pipeline.paths import CLASSIFIER, DATASET, MODEL, PER_IMAGE
from pipeline.runtime.randomness import PROTOCOL_SEED, standard_normal_columns

STAGES = parse_yaml(committed("dvc.lock"), "dvc.lock")["stages"].values()
MD5 = {out["path"]: out["md5"] for stage in STAGES for out in stage.get("outs", [])}
PARAMS = parse_yaml(committed("params.yaml"), "params.yaml")
TEST = json.loads(committed("reports/evaluation.json"))["test"]


def is_committed(path) -> bool:
    file = ROOT / path
    md5 = MD5.get(path.as_posix())
    return file.exists() and hashlib.md5(file.read_bytes()).hexdigest() == md5


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(is_committed, (CLASSIFIER, DATASET, MODEL, PER_IMAGE))),
        reason="the files of the committed run are not here: make repro",
    ),
]


@pytest.fixture(scope="module")
def dataset() -> dict[str, torch.Tensor]:
    tensors = load_file(ROOT / DATASET)
    return {name: t.flatten(1) / 255 if "images" in name else t for name, t in tensors.items()}


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(ROOT / MODEL)


def perceptron(weights: dict[str, torch.Tensor], half: str, x: torch.Tensor) -> torch.Tensor:
    """The output of encoder or decoder: matrices with max(0, x) between them."""
    names = [name for name in sorted(weights) if f"{half}." in name and name.endswith("weight")]
    for name in names:
        x = x @ weights[name].T + weights[name.replace("weight", "bias")]
        x = x if name == names[-1] else x.clamp(min=0)
    return x


def encode(weights: dict[str, torch.Tensor], x: torch.Tensor) -> Normal:
    mu, log_var = perceptron(weights, "encoder", x).chunk(2, dim=-1)
    return Normal(mu, (0.5 * log_var).exp())


def test_kl_and_active_units(weights, dataset):
    q = encode(weights, dataset["test_images"])
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(dim=1).double()
    assert TEST["kl"] == pytest.approx(kl.mean().item(), rel=1e-5)
    assert TEST["kl_se"] == pytest.approx(kl.std().item() / math.sqrt(len(kl)), rel=1e-4)
    assert TEST["active_units"] == int((q.mean.numpy().var(axis=0) > 0.01).sum())


def test_nll_of_the_first_100_images(weights, dataset):
    k, scale = PARAMS["eval_samples"], PARAMS["eval_proposal_scale"]
    nll = []
    for index, x in enumerate(dataset["test_images"][:100]):
        q = encode(weights, x)
        proposal = Independent(Normal(q.mean, scale * q.stddev), 1)
        eps = noise(k, len(q.mean), range(index, index + 1))[0]
        z = q.mean + scale * q.stddev * eps
        logits = perceptron(weights, "decoder", z)
        likelihood = Independent(Bernoulli(logits=logits, validate_args=False), 1)
        prior = Independent(Normal(torch.zeros_like(z), 1.0), 1)
        log_w = likelihood.log_prob(x) + prior.log_prob(z) - proposal.log_prob(z)
        nll.append(math.log(k) - log_w.logsumexp(0).item())
    stored = pd.read_parquet(ROOT / PER_IMAGE)["nll"]
    assert stored[:100].tolist() == pytest.approx(nll, abs=2e-3)
    assert TEST["nll"] == pytest.approx(stored.astype(float).mean(), rel=1e-9)


def test_frechet_distance(weights, dataset):
    real = dataset["test_images"]
    z = standard_normal_columns(len(real), PARAMS["z_dim"], PROTOCOL_SEED, "generate")
    samples = torch.sigmoid(perceptron(weights, "decoder", z))
    classifier = load_classifier(ROOT / CLASSIFIER)
    a, b = (classify(classifier, images).features.double().numpy() for images in (real, samples))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    common = scipy.linalg.sqrtm(cov_a @ cov_b).real.trace()
    between = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    expected = between + cov_a.trace() + cov_b.trace() - 2 * common
    assert TEST["frechet_distance"] == pytest.approx(expected, rel=1e-3)
