"""Stage `evaluate`: the trained VAE on the test split, by the same protocol for every run.

Noise, images and binarization are the same in every run, and the values of each image are kept, so
that two runs can be compared image by image.
"""

import io
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor

from pipeline import paths
from pipeline.data.datasets import Split, binarize, digest, load_split
from pipeline.errors import run
from pipeline.evaluation import bounds, latent_code, latent_walks, plots, reconstruction
from pipeline.evaluation.bounds import summary
from pipeline.evaluation.classifier import classify, load_classifier
from pipeline.evaluation.sample_quality import quality
from pipeline.figures import samples
from pipeline.model.likelihood import LEBESGUE
from pipeline.model.network import Posterior, to_batch
from pipeline.model.vae import VAE, load_vae
from pipeline.params import Params, load_params
from pipeline.runtime.cores import share_of_cores
from pipeline.runtime.device import prepare_device, set_threads
from pipeline.runtime.files import sha256_file, write_json, write_output
from pipeline.runtime.pending_run import mark_failure

HEADLINE = ("nll", "neg_elbo", "recon", "kl", "active_units", "frechet_distance", "knn_accuracy")
PROPOSALS = {"widened": "z from q, widened", "plain": "z from q", "prior": "z from the prior"}


@mark_failure()
def main() -> None:
    """Read model, classifier and test split; write metrics, tables and figures."""
    params = load_params()
    device = prepare_device(params.device)
    train, split = (load_split(paths.DATASET, name, params.binarize) for name in ("train", "test"))
    model = load_vae(paths.MODEL).to(device)
    cores = share_of_cores(torch.get_num_threads())

    terms, mse, posterior = bounds.elbo(model, split)
    summary(terms._asdict())  # raises, if the training has diverged, before it takes minutes
    recons = reconstruction.choose(model, to_batch(split[:10], device))
    proposal = (params.eval_samples, params.eval_proposal_scale)
    nll = bounds.nll_bounds(model, split, recons, proposal, cores)
    per_image = {
        "neg_elbo": terms.neg_elbo,
        **{name: values for name, values in terms._asdict().items() if name != "loss"},
        "nll": nll.widened[:, -1],
        "nll_binarized": nll.binarized,
    }
    others = {
        "mse": mse,
        "jensen_gap": per_image["neg_elbo"] - per_image["nll"],
        "neg_iwae": nll.plain[:, -1],
        "ess": nll.ess,
    }
    if model.likelihood.measure == LEBESGUE:
        bits = per_image["nll"] / math.log(2)
        # Gray values in [0, 1] are 1/255 apart.
        others["bits_per_dim"] = bits / split.images.shape[1] + math.log2(255)
    metrics = summary(per_image | others)
    save_per_image(per_image, split, model, params)
    samples.save_samples(model, 128, split[:64], paths.GENERATED, paths.RECONSTRUCTED)
    set_threads(1)  # the steps run at the same time, one core each
    with ThreadPoolExecutor(cores) as pool:
        # Only this thread uses a GPU: with two, PyTorch's code for MPS ends the process. On a CPU
        # it computes for some seconds beside the steps.
        generated = samples.generate(model, split.labels)
        steps = [pool.submit(compare_samples, model.architecture.num_classes, generated)]
        steps.append(pool.submit(describe_code, load_vae(paths.MODEL), split, posterior))
        mu = bounds.encode(model, train).mu
        steps.append(pool.submit(predict_labels, mu, train, split, posterior))
        prior = bounds.prior_bounds(model, split, recons, params.eval_samples)
        steps.append(pool.submit(describe_bounds, nll, prior, params.eval_samples))
    for step in steps:
        metrics |= step.result()
    metrics["num_images"] = len(split.images)
    headline = {name: metrics[name] for name in HEADLINE if name in metrics}
    write_json(paths.METRICS, {"test": headline})
    write_json(paths.EVALUATION, {"test": metrics})
    shown = "-log p(x) <= {nll:.2f} +/- {nll_se:.2f} nats per image, -ELBO {neg_elbo:.2f}"
    print(f"evaluate: {len(split.images)} test images:", shown.format(**metrics))
    print(f"evaluate: wrote {paths.EVALUATION}, {paths.METRICS}, tables and figures")
    print("evaluate: to compare it with other runs: python -m pipeline compare")


def describe_bounds(nll: bounds.NllBounds, prior: Tensor, num_samples: int) -> dict[str, float]:
    """Write and draw the bounds of −log p(x) over K; return that from the prior."""
    columns = zip(nll.widened.T, nll.plain.T, prior.T, strict=True)
    table = pd.DataFrame([summary(dict(zip(PROPOSALS, column, strict=True))) for column in columns])
    table.insert(0, "k", bounds.sample_sizes(num_samples))
    write_output(paths.BOUND, table.to_csv(index=False).encode())
    plots.draw_bound(table, PROPOSALS, paths.FIGURES / "bound.png")
    return summary({"nll_prior": prior[:, -1]})


@torch.no_grad()
def describe_code(model: VAE, split: Split, posterior: Posterior) -> dict[str, float]:
    """Write the KL of each latent dimension and the gallery; return metrics of the latent code.

    On the CPU, where the codes are: the gallery has some hundred images.
    """
    active = latent_code.active_units(posterior.mu)
    eps = bounds.evaluation_noise(*posterior.mu.shape)
    prior = model.p_z()
    kl = latent_code.kl_per_dimension(posterior, prior, eps)
    table = pd.DataFrame({"kl": kl, "active": active.int()})
    table = table.rename_axis("dimension").reset_index()
    table = table.sort_values("kl", ascending=False, kind="stable")
    table.insert(0, "rank", range(1, len(table) + 1))
    write_output(paths.KL_PER_DIMENSION, table.to_csv(index=False).encode())
    plots.draw_kl(table, paths.FIGURES / "kl_per_dimension.png")
    plots.draw_codes(posterior.mu, split.labels, paths.FIGURES / "posterior_means.png")
    latent_walks.draw_walks(model, split, posterior.mu, table, paths.FIGURES)
    parts = latent_code.kl_split(posterior, prior, eps[: latent_code.affordable_draws(*eps.shape)])
    return summary(parts) | {"active_units": int(active.sum())}


def predict_labels(
    train_mu: Tensor, train: Split, test: Split, posterior: Posterior
) -> dict[str, float]:
    """Accuracy of classifiers trained on the training images' μ at predicting the label, if any."""
    if not test.has_labels:
        return {}
    codes = (train_mu, train.labels, posterior.mu, test.labels)
    return summary({name: latent_code.correct(name, *codes) for name in latent_code.PROBES})


def compare_samples(num_classes: int, generated: Tensor) -> dict[str, float]:
    """Compare as many prior samples as test images with these, gray; write the classes of both.

    Without labels there is no classifier: the table of classes is empty.
    """
    split = load_split(paths.DATASET, "test")
    if not split.has_labels:
        write_output(paths.CLASSES, b"label,samples,test\n")
        return {}
    classifier = load_classifier(paths.CLASSIFIER)
    fake = classify(classifier, generated)
    real = classify(classifier, split.images)
    found = {"samples": fake.classes, "test": real.classes}
    counts = {name: each.bincount(minlength=classifier.num_classes) for name, each in found.items()}
    shares = pd.DataFrame(counts) / len(split.images)
    write_output(paths.CLASSES, shares.rename_axis("label").to_csv().encode())
    scores = quality(real.features, fake.features)
    if num_classes:
        scores |= summary({"label_agreement": fake.classes == split.labels})
    return scores


def save_per_image(columns: Mapping[str, Tensor], split: Split, model: VAE, params: Params) -> None:
    """Write one row per image, in the order of the test split; metadata: protocol and model."""
    protocol = params.model_dump(include={"eval_samples", "eval_proposal_scale"}) | {
        "images": digest(split.images),
        "binarization": digest(binarize(split.images)),
        "likelihood": model.likelihood.name,
    }
    is_gray = params.binarize == "none"
    if measure := model.likelihood.measure if is_gray else "binary pixels":
        protocol["measure"] = measure
    table = pyarrow.table({name: values.float().numpy() for name, values in columns.items()})
    about = {"protocol": json.dumps(protocol, sort_keys=True), "model": sha256_file(paths.MODEL)}
    table = table.replace_schema_metadata(about)
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content, compression="zstd", write_page_checksum=True)
    write_output(paths.PER_IMAGE, content.getvalue())


if __name__ == "__main__":
    run(main)
