"""Stage `evaluate`: what the trained VAE is worth, on the test split; the same protocol for every run.

Notable: noise, images and binarization are the same in every run, and the numbers of each image are kept, so that two
runs can be compared image by image.
"""

from pipeline.errors import run, writing
from pipeline.params import load_params
from pipeline.runtime.files import home
from pipeline.runtime.cores import first_free, join, share_of_cores

if __name__ == "__main__":
    run(load_params)  # what is wrong in params.yaml is said before the seconds that torch takes to import
    join(home())  # and who computes already has made room by then

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread

import pyarrow
import pyarrow.parquet
import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.evaluation.binarization import binarize, digest
from pipeline.evaluation.classifier import judge, load_classifier
from pipeline.runtime.device import prepare_device, set_threads
from pipeline.evaluation.latent_walks import encode
from pipeline.figures.grids import save_grid, save_pairs
from pipeline.evaluation.bounds import Elbo, Evidence, elbo, evaluation_noise, evidence, sample_sizes, summary
from pipeline.data.mnist import load_labelled, to_unit
from pipeline.model.vae import VAE, load_model
from pipeline.evaluation.posterior import active_units, affordable_draws, kl_per_dimension, kl_split
from pipeline.evaluation.sample_quality import class_shares, quality
from pipeline.figures.samples import generate, reconstruct

RAW = Path("data/raw")
MODEL = Path("data/model/vae.safetensors")
JUDGE = Path("data/judge/judge.safetensors")
METRICS = Path("reports/metrics.json")
PER_IMAGE = Path("reports/per_image.parquet")
BOUND = Path("reports/bound.csv")
KL_PER_DIMENSION = Path("reports/kl_per_dimension.csv")
CLASSES = Path("reports/classes.csv")
GENERATED = Path("reports/generated.png")
RECONSTRUCTED = Path("reports/reconstructed.png")
FIGURES = Path("reports/figures")

PROPOSALS = {"widened": "z from q, widened", "plain": "z from q", "prior": "z from the prior: naive Monte Carlo"}


def main() -> None:
    """Read model, judge and images; write the metrics, the tables behind them and the pictures."""
    params = load_params()
    # scikit-learn and Matplotlib take more than a second to import, which PyTorch need not wait for.
    imports = Thread(target=lambda: [import_module(f"pipeline.evaluation.{name}") for name in ("probe", "gallery")])
    imports.start()
    device = prepare_device(params.device, "params.yaml", partial(first_free, home(), "evaluate"))
    share = partial(share_of_cores, home(), torch.get_num_threads())
    images, labels = load_labelled(RAW, "test")
    model, _ = load_model(MODEL)
    model.to(device)

    bound = elbo(model, images)
    ks = sample_sizes(params.eval_samples)
    found = likelihood(model, images, params.eval_samples, params.eval_proposal_scale, share)
    per_image = {
        "neg_elbo": bound.recon + bound.kl,
        "recon": bound.recon,
        "kl": bound.kl,
        "nll": found.widened[:, -1],
        "nll_binarized": found.binarized,
    }
    with writing(METRICS.parent):
        FIGURES.mkdir(parents=True, exist_ok=True)
        protocol = {"eval_samples": params.eval_samples, "eval_proposal_scale": params.eval_proposal_scale}
        save_per_image(per_image, protocol | {"images": digest(images), "binarization": digest(binarize(images))})
        save_bound(ks, found)
        test = summary(per_image)
        test |= {"mse": float(bound.mse.double().mean())}
        test |= summary({
            "jensen_gap": per_image["neg_elbo"] - per_image["nll"],
            "neg_iwae": found.plain[:, -1],
            "nll_prior": found.prior[:, -1],
            "ess": found.ess,
        })  # fmt: skip
        imports.join()
        set_threads(1)  # a core for each of what comes now, as many at a time as there are
        # Pictures hold Python's lock, which scikit-learn needs least.
        with ThreadPoolExecutor(share()) as pool:
            told = pool.submit(labels_told, model, bound, labels)
            drawn = pool.submit(pictures, model, images, labels, ks, found)
            judged = pool.submit(samples_judged, model, images)
            held = pool.submit(latent, bound)
        drawn.result()
        test |= held.result() | told.result() | judged.result() | {"num_images": len(images)}
        METRICS.write_text(json.dumps({"test": test}, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        save_grid(generate(model, 128), GENERATED)
        save_pairs(to_unit(images[:64]), reconstruct(model, images[:64]), RECONSTRUCTED)

    print(
        "evaluate: −log p(x) ≤ {nll:.2f} ± {nll_se:.2f} nats per image over {num_images} test images; −ELBO "
        "{neg_elbo:.2f} = recon {recon:.2f} + KL {kl:.2f}; {active_units} active units; fd_judge {fd_judge:.2f}".format(
            **test
        )
    )
    print(f"evaluate: wrote {METRICS}, the tables beside it, {GENERATED}, {RECONSTRUCTED} and {FIGURES}/")
    print("evaluate: `python -m pipeline.commands.compare` lays it beside HEAD and the experiments")


def likelihood(model: VAE, images: Tensor, num_samples: int, scale: float, share: Callable[[], int]) -> Evidence:
    """−log p(x) of every image, with a progress bar, on its share of the cores, which may change on the way."""
    records = []
    with tqdm(total=len(images), unit="image", desc="−log p(x)", disable=None) as progress:
        for record in evidence(model, images, num_samples, scale, share):
            records.append(record)
            progress.update(len(record.ess))
    return Evidence(*(torch.cat(column) for column in zip(*records, strict=True)))


def save_per_image(columns: Mapping[str, Tensor], protocol: Mapping[str, object]) -> None:
    """Write a row an image, in the order of the test file; how they were found is in the file's metadata."""
    table = pyarrow.table({name: values.float().numpy() for name, values in columns.items()})
    table = table.replace_schema_metadata({"protocol": json.dumps(protocol, sort_keys=True)})
    pyarrow.parquet.write_table(table, PER_IMAGE, compression="zstd")


def bound_curves(found: Evidence) -> dict[str, list[dict[str, float]]]:
    """By proposal, for each K, the mean of the bound and its standard error."""
    return {name: [summary({name: column}) for column in getattr(found, name).T] for name in PROPOSALS}


def save_bound(ks: list[int], found: Evidence) -> None:
    """Write the bound over K."""
    columns = zip(*bound_curves(found).values(), strict=True)
    save_table(
        BOUND, [{"k": k} | widened | plain | prior for k, (widened, plain, prior) in zip(ks, columns, strict=True)]
    )


def pictures(model: VAE, images: Tensor, labels: Tensor, ks: list[int], found: Evidence) -> None:
    """Draw the bound over K, and the gallery."""
    from pipeline.evaluation.gallery import draw_gallery  # noqa: PLC0415  (see `main`)
    from pipeline.evaluation.plots import draw_bound  # noqa: PLC0415

    drawn = {
        PROPOSALS[name]: ([at[name] for at in curve], [at[f"{name}_se"] for at in curve])
        for name, curve in bound_curves(found).items()
    }
    draw_bound(ks, drawn, FIGURES / "bound.png")
    draw_gallery(model, images, labels, FIGURES)


def latent(bound: Elbo) -> dict[str, float]:
    """What the code holds; writes the KL of each dimension."""
    kl, active = kl_per_dimension(bound.mu, bound.log_var), active_units(bound.mu)
    order = kl.argsort(descending=True).tolist()
    save_table(KL_PER_DIMENSION, [
        {"rank": rank, "dimension": j, "kl": kl[j].item(), "active": int(active[j])} for rank, j in enumerate(order, 1)
    ])  # fmt: skip
    draws = affordable_draws(*bound.mu.shape)
    split = kl_split(bound.mu, bound.log_var, evaluation_noise(*bound.mu.shape)[:draws])
    return {"active_units": int(active.sum())} | summary({
        "mutual_information": split.mutual_information,
        "total_correlation": split.total_correlation,
        "dimension_wise_kl": split.dimension_wise,
    })  # fmt: skip


def labels_told(model: VAE, bound: Elbo, labels: Tensor) -> dict[str, float]:
    """How well the digit is told from μ, by what learnt from the μ of the training images."""
    from pipeline.evaluation.probe import knn_correct, linear_correct  # noqa: PLC0415  (see `main`)

    images, train_labels = load_labelled(RAW, "train")
    train_mu, _ = encode(model, images)
    return summary({
        "knn_accuracy": knn_correct(train_mu, train_labels, bound.mu, labels),
        "probe_accuracy": linear_correct(train_mu, train_labels, bound.mu, labels),
    })  # fmt: skip


def samples_judged(model: VAE, images: Tensor) -> dict[str, float]:
    """As many prior samples as test images, against these, in the judge's features; writes the classes it sees."""
    classifier = load_classifier(JUDGE)
    samples, real = judge(classifier, generate(model, len(images))), judge(classifier, images)
    shares = zip(class_shares(samples.classes).tolist(), class_shares(real.classes).tolist(), strict=True)
    save_table(CLASSES, [{"digit": digit, "samples": of, "test": test} for digit, (of, test) in enumerate(shares)])
    return quality(real.features, samples.features)


def save_table(path: Path, rows: Iterable[Mapping[str, float]]) -> None:
    """Write records of the same keys as CSV: floats as Python writes them, so that they read back equal."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    run(main)
