"""Stage `train`: data/raw → a trained VAE, its history, and sample grids from along the way.

Notable: killed at any moment and started again it ends in the same bytes as if nothing had happened (checkpoint.py).
"""

from pipeline.errors import InputError, run, writing
from pipeline.params import Params, load_params
from pipeline.runtime.files import home
from pipeline.runtime.cores import first_free, join, share_of_cores

if __name__ == "__main__":
    run(load_params)  # what is wrong in params.yaml is said before the seconds that torch takes to import
    join(home())  # and who computes already has made room by then

import csv
import hashlib
import math
import os
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.training.checkpoint import Checkpoint, State, put_back, tell
from pipeline.runtime.fingerprint import fingerprint, ingredients
from pipeline.runtime.pending_run import mirrored
from pipeline.training.adam import Adam
from pipeline.runtime.device import device_name, has_bfloat16, prepare_device, set_threads
from pipeline.figures.grids import save_grid, save_pairs
from pipeline.training.fit import DivergenceError, Record, fit, new_optimizer, restore_training, training_state
from pipeline.training.accelerated.gradient import most_threads
from pipeline.data.mnist import PIXELS, hold_out, load_images, to_unit
from pipeline.model.vae import VAE, save_model
from pipeline.runtime.randomness import generator
from pipeline.figures.samples import generate, reconstruct

RAW = Path("data/raw")
MODEL = Path("data/model/vae.safetensors")
HISTORY = Path("reports/history.csv")
SAMPLES = Path("reports/samples")
COLUMNS = ["epoch", *(f"{split}/{name}" for split in ("train", "val") for name in ("recon", "kl", "neg_elbo"))]


def main() -> None:
    """Read the declared inputs, train, write the declared outputs."""
    params = load_params()
    device = prepare_device(params.device, "params.yaml", partial(first_free, home(), "train"))
    images = load_images(RAW, "train")
    if params.val_size >= len(images):
        raise InputError(f"params.yaml: val_size: must be less than the {len(images)} images (got {params.val_size})")
    train, val = hold_out(images.to(device), params.val_size)
    # From the end of the file: the same images in every run, and held out if val_size is no less.
    shown = images[-32:]

    provenance = ingredients("train", params.model_dump(), device_name(device))
    identity = fingerprint(provenance)
    print(f"train: {len(train)} images, {len(val)} held out, on {device}, in {params.precision}")
    if params.precision == "bfloat16" and not has_bfloat16(device):
        tell("this device has no instructions for bfloat16: float32 is faster on it")
    model = new_model(params).to(device)
    optimizer = new_optimizer(model, params.learning_rate, params.precision)
    threads = min(torch.get_num_threads(), most_threads(model))
    set_threads(share_of_cores(home(), threads))
    with Checkpoint(home(), identity) as checkpoint:
        begun = resume(checkpoint, model, optimizer, params.num_epochs)
        if begun is None:
            begin(model, shown)
        done = begun.epoch if begun else 0
        records = fit(
            model, optimizer, train, val,
            num_epochs=params.num_epochs, batch_size=params.batch_size, seed=params.seed, done=done,
        )  # fmt: skip
        # The history grows by a line an epoch, after that epoch's pictures: the mirror takes what it finds there.
        with mirrored(identity, provenance, begun.execution if begun else None) as execution:
            with tqdm(records, total=params.num_epochs, initial=done, unit="epoch", disable=None) as progress:
                try:
                    for record in progress:
                        set_threads(share_of_cores(home(), threads))  # who computes beside it comes and goes
                        progress.set_postfix_str(losses(record))
                        epoch = int(record["epoch"])
                        if epoch % params.sample_every == 0 or epoch == params.num_epochs:
                            save_samples(model, shown, epoch)
                            progress.write(f"train: epoch {epoch}/{params.num_epochs}: {losses(record)}")
                        append(record)
                        if checkpoint.due() or epoch == params.num_epochs:
                            checkpoint.save(State(epoch, execution, training_state(model, optimizer), files()))
                except DivergenceError as error:
                    checkpoint.remove()  # from there it would diverge again
                    raise diverged(error, params) from error
            splits = {"training": described(train)} | ({"validation": described(val)} if len(val) else {})
            with writing(MODEL):
                MODEL.parent.mkdir(parents=True, exist_ok=True)
                save_model(model, MODEL, {"fingerprint": identity, "splits": splits, **provenance})
        if "DVC_STAGE" not in os.environ:
            checkpoint.remove()  # where DVC has yet to record the outputs, and may be killed before, `log` does so
    print(f"train: wrote {MODEL}, {HISTORY} and {SAMPLES}/")


def resume(checkpoint: Checkpoint, model: VAE, optimizer: Adam, num_epochs: int) -> State | None:
    """Put model, optimizer and files where a training that was killed left them; None where there was none."""
    state = checkpoint.load(num_epochs)
    if state is None:
        return None
    with writing(HISTORY):
        put_back(state.files)
    restore_training(model, optimizer, state.tensors)
    tell(f"goes on after epoch {state.epoch} of {num_epochs}, where it was interrupted")
    return state


def begin(model: VAE, shown: torch.Tensor) -> None:
    """Write what there is before the first epoch."""
    with writing(HISTORY):
        HISTORY.parent.mkdir(parents=True, exist_ok=True)
        HISTORY.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        for picture in SAMPLES.glob("*.png"):  # of a training before: DVC has removed them, a person may not have
            picture.unlink()
    save_samples(model, shown, epoch=0)  # untrained: where the MLflow UI's slider begins


def append(record: Record) -> None:
    """Add a line to the history: floats as Python writes them, so that they read back equal."""
    with writing(HISTORY), HISTORY.open("a", newline="", encoding="utf-8") as history:
        csv.DictWriter(history, fieldnames=COLUMNS, lineterminator="\n").writerow(record)


def files() -> dict[str, bytes]:
    """What has been written so far, by its path."""
    return {path.as_posix(): path.read_bytes() for path in (HISTORY, *sorted(SAMPLES.glob("*.png")))}


def diverged(error: DivergenceError, params: Params) -> InputError:
    """What to look at where the loss has become NaN or infinite."""
    steps = f"step {error.step}" if error.step else "the validation after it"
    return InputError(
        f"train: the loss is not finite in epoch {error.epoch}, {steps}: look at learning_rate in params.yaml "
        f"(it is {params.learning_rate}: lower it), then at batch_size ({params.batch_size}) and h_layers "
        f"({params.h_layers})"
    )


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


def described(images: torch.Tensor) -> dict[str, str | int]:
    """A split of the data set: how many images, and the sha256 of their pixels."""
    return {"num_images": len(images), "sha256": hashlib.sha256(images.cpu().numpy().tobytes()).hexdigest()}


def save_samples(model: VAE, shown: torch.Tensor, epoch: int) -> None:
    """Write what the model shows after `epoch`: prior samples, and `shown` beside its reconstructions."""
    with writing(SAMPLES):
        SAMPLES.mkdir(parents=True, exist_ok=True)
        save_grid(generate(model, 64), SAMPLES / f"generated-epoch-{epoch:04d}.png")
        save_pairs(to_unit(shown), reconstruct(model, shown), SAMPLES / f"reconstructed-epoch-{epoch:04d}.png")


def losses(record: Record) -> str:
    """The record's losses for a person watching."""
    text = "−ELBO {train/neg_elbo:.2f} (recon {train/recon:.2f} + KL {train/kl:.2f})".format(**record)
    return text + (f", val {record['val/neg_elbo']:.2f}" if math.isfinite(record["val/neg_elbo"]) else "")


if __name__ == "__main__":
    run(main)
