"""Stage `train`: data/raw → a trained VAE, its history, and sample grids from along the way."""

import csv
import math
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.errors import InputError, run
from pipeline.params import Params, load_params
from pipeline.vae.device import prepare_device
from pipeline.vae.figures import save_grid, save_pairs
from pipeline.vae.fit import Record, fit
from pipeline.vae.mnist import PIXELS, hold_out, load_images, to_unit
from pipeline.vae.model import VAE, save_model
from pipeline.vae.randomness import generator
from pipeline.vae.sampling import generate, reconstruct

RAW = Path("data/raw")
MODEL = Path("data/model/vae.safetensors")
HISTORY = Path("reports/history.csv")
SAMPLES = Path("reports/samples")


def main() -> None:
    """Read the declared inputs, train, write the declared outputs."""
    params = load_params()
    device = prepare_device(params.device, said_in="params.yaml")
    images = load_images(RAW, "train")
    if params.val_size >= len(images):
        raise InputError(f"params.yaml: val_size: must be less than the {len(images)} images (got {params.val_size})")
    train, val = hold_out(images.to(device), params.val_size)
    # From the end of the file: the same images in every run, and held out if val_size is no less.
    shown = images[-32:]

    SAMPLES.mkdir(parents=True, exist_ok=True)
    print(f"train: {len(train)} images, {len(val)} held out, on {device}")
    model = new_model(params).to(device)
    save_samples(model, shown, epoch=0)  # untrained: where the MLflow UI's slider begins
    history: list[Record] = []
    records = fit(
        model, train, val,
        num_epochs=params.num_epochs, batch_size=params.batch_size,
        learning_rate=params.learning_rate, seed=params.seed,
    )  # fmt: skip
    with tqdm(records, total=params.num_epochs, unit="epoch", disable=None) as progress:
        for record in progress:
            history.append(record)
            progress.set_postfix_str(losses(record))
            if not math.isfinite(record["train/neg_elbo"] + (record["val/neg_elbo"] if len(val) else 0)):
                raise InputError(
                    f"train: the loss is not finite in epoch {record['epoch']}: "
                    f"lower learning_rate in params.yaml (it is {params.learning_rate})"
                )
            if record["epoch"] % params.sample_every == 0 or record["epoch"] == params.num_epochs:
                save_samples(model, shown, int(record["epoch"]))
                progress.write(f"train: epoch {record['epoch']}/{params.num_epochs}: {losses(record)}")

    MODEL.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, MODEL, configuration(params))
    write_history(history)
    print(f"train: wrote {MODEL}, {HISTORY} and {SAMPLES}/")


def new_model(params: Params) -> VAE:
    """The VAE that the parameters describe, initialized."""
    model = VAE(
        x_dim=PIXELS,
        h_dim=params.h_dim,
        z_dim=params.z_dim,
        h_layers=params.h_layers,
        activation=params.activation,
    )
    model.reset_parameters(generator(params.seed, "init"))
    return model


def configuration(params: Params) -> dict[str, str | int | float]:
    """What, besides the architecture, the weights were trained with: kept in the model's header."""
    return {
        "dataset": params.dataset,
        "val_size": params.val_size,
        "num_epochs": params.num_epochs,
        "batch_size": params.batch_size,
        "learning_rate": params.learning_rate,
        "seed": params.seed,
    }


def save_samples(model: VAE, shown: torch.Tensor, epoch: int) -> None:
    """Write what the model shows after `epoch`: prior samples, and `shown` beside its reconstructions."""
    save_grid(generate(model, 64), SAMPLES / f"generated-epoch-{epoch:04d}.png")
    save_pairs(to_unit(shown), reconstruct(model, shown), SAMPLES / f"reconstructed-epoch-{epoch:04d}.png")


def write_history(history: list[Record]) -> None:
    """One row an epoch; floats as Python writes them, so that they read back equal."""
    with HISTORY.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)


def losses(record: Record) -> str:
    """The record's losses for a person watching."""
    text = "−ELBO {train/neg_elbo:.2f} (recon {train/recon:.2f} + KL {train/kl:.2f})".format(**record)
    return text + (f", val {record['val/neg_elbo']:.2f}" if math.isfinite(record["val/neg_elbo"]) else "")


if __name__ == "__main__":
    run(main)
