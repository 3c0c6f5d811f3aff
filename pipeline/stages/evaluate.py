"""Stage `evaluate`: the trained VAE on the test split, by the same protocol for every run.

Noise, images and binarization are the same in every run, and the values of each image are kept, so
that two runs can be compared image by image.
"""

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.data.datasets import Split, load_split, to_unit
from pipeline.errors import run, writing
from pipeline.evaluation.binarization import binarize, digest
from pipeline.evaluation.bounds import (
    Evidence,
    concatenate,
    elbo,
    evaluation_noise,
    evidence,
    prior_bounds,
    sample_sizes,
    summary,
)
from pipeline.evaluation.classifier import classify, load_classifier
from pipeline.evaluation.gallery import draw_gallery
from pipeline.evaluation.latent_walks import encode
from pipeline.evaluation.plots import draw_bound
from pipeline.evaluation.posterior import active_units, affordable_draws, kl_per_dimension, kl_split
from pipeline.evaluation.probe import Codes, knn_correct, linear_correct
from pipeline.evaluation.reconstruction import Recons, choose
from pipeline.evaluation.sample_quality import class_shares, quality
from pipeline.figures.grids import save_grid, save_pairs
from pipeline.figures.samples import generate, reconstruct
from pipeline.model.network import Posterior, to_batch
from pipeline.model.vae import VAE, load_vae
from pipeline.params import Params, load_params
from pipeline.paths import (
    BOUND,
    CLASSES,
    CLASSIFIER,
    DATASET,
    EVALUATION,
    FIGURES,
    GENERATED,
    KL_PER_DIMENSION,
    METRICS,
    MODEL,
    PER_IMAGE,
    RECONSTRUCTED,
)
from pipeline.runtime.cores import share_of_cores
from pipeline.runtime.device import prepare_device, set_threads

HEADLINE = ("nll", "neg_elbo", "recon", "kl", "active_units", "frechet_distance", "knn_accuracy")
PROPOSALS = {"widened": "z from q, widened", "plain": "z from q", "prior": "z from the prior"}


def main() -> None:
    """Read model, classifier and test split; write metrics, tables and figures."""
    params = load_params()
    device = prepare_device(params.device)
    split = load_split(DATASET, "test")
    model = load_vae(MODEL).to(device)
    workers = partial(share_of_cores, torch.get_num_threads())

    terms, mse, posterior = elbo(model, split)
    recons = choose(model, to_batch(split.images[:10], split.labels[:10], device))
    bounds = estimate_evidence(model, split, recons, params, workers)
    per_image = {
        "neg_elbo": terms.neg_elbo,
        **terms._asdict(),
        "nll": bounds.widened[:, -1],
        "nll_binarized": bounds.binarized,
    }
    metrics = summary(per_image) | {"mse": float(mse.double().mean())}
    metrics |= summary(
        {
            "jensen_gap": terms.neg_elbo - per_image["nll"],
            "neg_iwae": bounds.plain[:, -1],
            "ess": bounds.ess,
        }
    )
    with writing(METRICS.parent):
        FIGURES.mkdir(parents=True, exist_ok=True)
        save_per_image(per_image, split, model, params)
        set_threads(1)  # the steps run at the same time, one core each
        with ThreadPoolExecutor(workers()) as pool:
            steps = [
                pool.submit(predict_labels, model, posterior, split),
                pool.submit(compare_samples, model, split),
                pool.submit(describe_bounds, model, split, recons, bounds, params),
                pool.submit(describe_code, model, split, posterior),
            ]
        for step in steps:
            metrics |= step.result()
        metrics["num_images"] = len(split.images)
        save_samples(model, split)
        save_json(METRICS, {name: metrics[name] for name in HEADLINE})
        save_json(EVALUATION, metrics)
    report(metrics)


def estimate_evidence(
    model: VAE, split: Split, recons: Recons, params: Params, workers: Callable[[], int]
) -> Evidence:
    """Bounds of −log p(x) of every image, with a progress bar."""
    chunks = []
    samples, scale = params.eval_samples, params.eval_proposal_scale
    with tqdm(total=len(split.images), unit="image", desc="-log p(x)", disable=None) as progress:
        for chunk in evidence(model, split, recons, samples, scale, workers):
            chunks.append(chunk)
            progress.update(len(chunk.ess))
    return Evidence(*concatenate(chunks))


def describe_bounds(
    model: VAE, split: Split, recons: Recons, bounds: Evidence, params: Params
) -> dict[str, float]:
    """Write the bounds of −log p(x) over K, as a table and a figure; returns nll_prior."""
    columns = {"k": sample_sizes(params.eval_samples)}
    prior = prior_bounds(model, split, recons, params.eval_samples)
    for name, values in (("widened", bounds.widened), ("plain", bounds.plain), ("prior", prior)):
        rows = pd.DataFrame([summary({name: at_k}) for at_k in values.T])
        columns |= rows.to_dict("list")
    table = pd.DataFrame(columns)
    save_table(table, BOUND)
    draw_bound(table, PROPOSALS, FIGURES / "bound.png")
    return summary({"nll_prior": prior[:, -1]})


def describe_code(model: VAE, split: Split, posterior: Posterior) -> dict[str, float]:
    """Write the KL of each latent dimension and the gallery; returns metrics of the latent code."""
    kl, active = kl_per_dimension(posterior), active_units(posterior.mu)
    table = pd.DataFrame({"kl": kl.numpy(), "active": active.int().numpy()})
    table = table.rename_axis("dimension").sort_values("kl", ascending=False, kind="stable")
    table = table.reset_index()
    table.insert(0, "rank", range(1, len(table) + 1))
    save_table(table, KL_PER_DIMENSION)
    draw_gallery(model, split, posterior.mu, table, FIGURES)
    n, z_dim = posterior.mu.shape
    parts = kl_split(posterior, evaluation_noise(n, z_dim)[: affordable_draws(n, z_dim)])
    return {"active_units": int(active.sum())} | summary(
        {
            "mutual_information": parts.mutual_information,
            "total_correlation": parts.total_correlation,
            "dimension_wise_kl": parts.dimension_wise,
        }
    )


def predict_labels(model: VAE, posterior: Posterior, split: Split) -> dict[str, float]:
    """Accuracy of classifiers trained on the training images' μ at predicting the label."""
    train_split = load_split(DATASET, "train")
    train = Codes(encode(model, train_split).mu, train_split.labels)
    test = Codes(posterior.mu, split.labels)
    return summary(
        {
            "knn_accuracy": knn_correct(train, test),
            "probe_accuracy": linear_correct(train, test),
        }
    )


def compare_samples(model: VAE, split: Split) -> dict[str, float]:
    """Compare as many prior samples as test images with these; writes the classes of both."""
    classifier = load_classifier(CLASSIFIER)
    samples = classify(classifier, generate(model, split.labels))
    real = classify(classifier, split.images)
    num_classes = classifier.head.out_features
    shares = {
        "samples": class_shares(samples.classes, num_classes).numpy(),
        "test": class_shares(real.classes, num_classes).numpy(),
    }
    save_table(pd.DataFrame(shares).rename_axis("label").reset_index(), CLASSES)
    return quality(real.features, samples.features)


def save_per_image(columns: Mapping[str, Tensor], split: Split, model: VAE, params: Params) -> None:
    """Write one row per image, in the order of the test split; the metadata has the protocol."""
    protocol = {
        "eval_samples": params.eval_samples,
        "eval_proposal_scale": params.eval_proposal_scale,
        "images": digest(split.images),
        "binarization": digest(binarize(split.images)),
        "likelihood": model.likelihood.name,
    }
    table = pyarrow.table({name: values.float().numpy() for name, values in columns.items()})
    table = table.replace_schema_metadata({"protocol": json.dumps(protocol, sort_keys=True)})
    pyarrow.parquet.write_table(table, PER_IMAGE, compression="zstd")


def save_samples(model: VAE, split: Split) -> None:
    """Write 128 samples from the prior, and the first 64 images with their reconstructions."""
    images, labels = split.images[:64], split.labels[:64]
    save_grid(generate(model, split.labels[:128]), split.image_shape, GENERATED)
    reconstructions = reconstruct(model, images, labels)
    save_pairs(to_unit(images), reconstructions, split.image_shape, RECONSTRUCTED)


def save_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV; floats read back equal."""
    table.to_csv(path, index=False, lineterminator="\n")


def save_json(path: Path, metrics: Mapping[str, float]) -> None:
    """Write metrics of the test split."""
    text = json.dumps({"test": metrics}, indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def report(metrics: Mapping[str, float]) -> None:
    """Print the headline metrics, what was written, and the next command."""
    print(
        "evaluate: -log p(x) <= {nll:.2f} +/- {nll_se:.2f} nats per image over {num_images} test "
        "images; -ELBO {neg_elbo:.2f}, recon {recon:.2f}, KL {kl:.2f}; {active_units} active "
        "units; Frechet distance {frechet_distance:.2f}".format(**metrics)
    )
    print(f"evaluate: wrote {METRICS}, {EVALUATION}, {GENERATED}, {FIGURES}/ and the tables")
    print("evaluate: compare it with other runs: python -m pipeline compare")


if __name__ == "__main__":
    run(main)
