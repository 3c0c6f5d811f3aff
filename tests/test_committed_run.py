"""The committed results, computed again from the committed run's files by other code than the project's.

The files are in DVC's cache and not in git: after `make repro` they are there. Of the project only the addresses of the
noise, which are part of the protocol, and the judge's network are used.
"""

import hashlib
import json
import math

import numpy as np
import pyarrow.parquet
import pytest
import torch
from conftest import ROOT, committed
from ruamel.yaml import YAML
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence
from torchmetrics.image.fid import FrechetInceptionDistance

from pipeline.evaluation.classifier import load_classifier
from pipeline.evaluation.importance import noise
from pipeline.runtime.randomness import PROTOCOL_SEED, standard_normal_columns

LOCK = YAML(typ="safe").load(committed("dvc.lock"))["stages"]
TEST = json.loads(committed("reports/metrics.json"))["test"]
FILES = {out["path"]: out.get("md5") for stage in LOCK.values() for out in stage["outs"] if "." in out["path"]}
NAMES = ("data/model/vae.safetensors", "data/judge/judge.safetensors", "reports/per_image.parquet")


def is_there(name: str) -> bool:
    path = ROOT / name
    return path.exists() and hashlib.md5(path.read_bytes()).hexdigest() == FILES.get(name)


pytestmark = pytest.mark.skipif(
    not all(map(is_there, NAMES)), reason="the committed run's files are not here: `make repro`"
)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return load_file(ROOT / NAMES[0])


def layers(weights: dict[str, torch.Tensor], half: str, x: torch.Tensor) -> torch.Tensor:
    """What encoder or decoder makes of x: matrices and max(0, ·)."""
    w = [weights[name] for name in sorted(weights) if name.startswith(half) and name.endswith("weight")]
    b = [weights[name] for name in sorted(weights) if name.startswith(half) and name.endswith("bias")]
    for index in range(len(w)):
        x = x @ w[index].T + b[index]
        x = x.clamp(min=0) if index < len(w) - 1 else x
    return x


def q(weights: dict[str, torch.Tensor], x: torch.Tensor) -> Normal:
    mu, log_var = layers(weights, "encoder", x).chunk(2, dim=-1)
    return Normal(mu, (0.5 * log_var).exp())


def images(split: str) -> torch.Tensor:
    raw = np.fromfile(ROOT / f"data/raw/{split}-images-idx3-ubyte", np.uint8)[16:]
    return torch.from_numpy(raw.reshape(-1, 784).astype(np.float32) / 255)


def labels(split: str) -> np.ndarray:
    return np.fromfile(ROOT / f"data/raw/{split}-labels-idx1-ubyte", np.uint8)[8:]


def test_kl_and_active_units(weights):
    posterior = q(weights, images("t10k"))
    kl = kl_divergence(posterior, Normal(0.0, 1.0)).sum(dim=1).double()
    assert TEST["kl"] == pytest.approx(kl.mean().item(), rel=1e-5)
    assert TEST["kl_se"] == pytest.approx(kl.std().item() / math.sqrt(len(kl)), rel=1e-4)
    assert TEST["active_units"] == int((posterior.mean.numpy().var(axis=0) > 0.01).sum())


def test_nll_image_by_image(weights):
    """The first 100 images, each draw weighted by densities of torch.distributions."""
    params = YAML(typ="safe").load(committed("params.yaml"))
    k, scale = params["eval_samples"], params["eval_proposal_scale"]
    found = []
    for index, x in enumerate(images("t10k")[:100]):
        posterior = q(weights, x)
        proposal = Independent(Normal(posterior.mean, scale * posterior.stddev), 1)
        z = posterior.mean + scale * posterior.stddev * noise(k, len(posterior.mean), index)
        likelihood = Independent(Bernoulli(logits=layers(weights, "decoder", z), validate_args=False), 1)
        prior = Independent(Normal(torch.zeros_like(z), 1.0), 1)
        log_w = likelihood.log_prob(x) + prior.log_prob(z) - proposal.log_prob(z)
        found.append(math.log(k) - log_w.logsumexp(0).item())
    written = pyarrow.parquet.read_table(ROOT / NAMES[2])["nll"].to_numpy()
    assert written[:100].tolist() == pytest.approx(found, abs=2e-3)
    assert TEST["nll"] == pytest.approx(written.astype("float64").mean(), rel=1e-12)


def test_accuracies_of_the_code(weights):
    train, test = (q(weights, images(split)).mean.numpy().astype("float64") for split in ("train", "t10k"))
    train_labels, test_labels = labels("train"), labels("t10k")
    nearest = NearestNeighbors(n_neighbors=15).fit(train).kneighbors(test[:1000], return_distance=False)
    votes = np.array([np.bincount(train_labels[row], minlength=10).argmax() for row in nearest])
    error = math.sqrt(TEST["knn_accuracy"] * (1 - TEST["knn_accuracy"]) / 1000)
    assert (votes == test_labels[:1000]).mean() == pytest.approx(TEST["knn_accuracy"], abs=4 * error)
    mean, sd = train.mean(axis=0), train.std(axis=0)
    probe = LogisticRegression(solver="newton-cg").fit((train - mean) / sd, train_labels)
    assert probe.score((test - mean) / sd, test_labels) == pytest.approx(TEST["probe_accuracy"], abs=1e-3)


def test_fd_judge_by_torchmetrics(weights):
    judge = load_classifier(ROOT / NAMES[1])

    class Features(torch.nn.Module):
        num_features = 64

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return judge.features(x.view(-1, 784).float())

    distance = FrechetInceptionDistance(feature=Features(), normalize=True, input_img_size=(1, 1, 784)).set_dtype(
        torch.float64
    )
    z_dim = weights["decoder.0.weight"].shape[1]
    real = images("t10k")
    z = standard_normal_columns(len(real), z_dim, PROTOCOL_SEED, "generate")
    samples = torch.sigmoid(layers(weights, "decoder", z))
    for start in range(0, len(real), 1000):
        distance.update(real[start : start + 1000].view(-1, 1, 1, 784), real=True)
        distance.update(samples[start : start + 1000].view(-1, 1, 1, 784), real=False)
    assert TEST["fd_judge"] == pytest.approx(distance.compute().item(), rel=1e-3)
