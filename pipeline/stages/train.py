"""Stage `train`: the dataset -> a trained VAE, its history, and sample grids from along the way.

Interrupted at any moment and run again, it ends in the same bytes as if it had not been
interrupted.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from tqdm import tqdm

from pipeline.data.datasets import Split, digest, hold_out, load_split
from pipeline.errors import UserError, run, writing
from pipeline.figures import samples
from pipeline.model.network import Architecture
from pipeline.model.objective import Objective
from pipeline.model.vae import VAE, new_vae, save_vae
from pipeline.params import Params, load_params
from pipeline.paths import DATASET, HISTORY, MODEL, SAMPLES
from pipeline.runtime.cores import share_of_cores
from pipeline.runtime.device import device_name, prepare_device, set_threads
from pipeline.runtime.files import sha256_file
from pipeline.runtime.fingerprint import fingerprint, provenance
from pipeline.runtime.finite import DivergenceError
from pipeline.runtime.pending_run import follow_training
from pipeline.training.best_epoch import BestEpoch
from pipeline.training.checkpoint import Checkpoint, CheckpointFile
from pipeline.training.fit import Record, fit
from pipeline.training.gradient import MAX_THREADS
from pipeline.training.optimizer import Optimizer

NUM_SAMPLES = 64
NUM_PAIRS = 32  # of images and their reconstructions


def main() -> None:
    """Read the declared inputs, train, write the declared outputs."""
    params = load_params()
    device = prepare_device(params.device)
    split = load_split(DATASET, "train", params.binarize).to(device)
    train, val = hold_out(split, params.val_size)
    if is_dynamic := params.binarize == "dynamic":
        train, _ = hold_out(load_split(DATASET, "train").to(device), params.val_size)
    # The last images of the dataset: the same in every run, and held out if val_size allows it.
    shown = split[-NUM_PAIRS:]
    model = build_model(params, split).to(device)
    objective = chosen(Objective, params)
    optimizer = Optimizer(
        model, params.learning_rate, params.precision, lr_schedule=params.lr_schedule,
        num_epochs=params.num_epochs, weight_decay=params.weight_decay,
    )  # fmt: skip
    best = BestEpoch(model, params.patience, params.warmup_epochs)
    origin = provenance(params.model_dump(), device_name(device))
    key = fingerprint(origin, params.model_dump())
    origin["splits"] = {"training": describe(train)}
    if params.val_size:
        origin["splits"]["validation"] = describe(val)

    print(f"train: {len(train.images)} images, {params.val_size} held out, on {device}")
    file = CheckpointFile(key, report)
    checkpoint = file.load() or Checkpoint(0, {}, {})
    prepare_outputs(checkpoint, optimizer, best, shown)
    epochs = range(checkpoint.epoch + 1, params.num_epochs + 1)
    records = fit(
        optimizer, train, val, epochs,
        batch_size=params.batch_size, seed=params.seed, objective=objective,
        binarize=is_dynamic, best=best, report=report,
    )  # fmt: skip
    with follow_training(key, origin) as pending_run:
        try:
            for epoch in write_epochs(records, epochs, params, best, shown):
                if file.is_due():
                    state = optimizer.state() | best.state
                    file.save(Checkpoint(epoch, state, written_files()))
        except DivergenceError:
            file.remove()  # the training would diverge again from there
            raise
        save_vae(model, MODEL, origin)
        pending_run.finish(sha256_file(MODEL))
    file.remove()
    weights = f"the weights of epoch {best.epoch} as " if params.patience else ""
    print(f"train: wrote {weights}{MODEL}, {HISTORY} and {SAMPLES}/")


def build_model(params: Params, split: Split) -> VAE:
    """The untrained model that the parameters describe."""
    if params.conditional and not split.has_labels:
        message = "needs labels: choose another dataset (key: dataset), or add labels to the images"
        raise UserError("params.yaml: conditional", message)
    num_classes = int(split.labels.max()) + 1 if params.conditional else 0
    shape = split.image_shape
    architecture = chosen(Architecture, params, image_shape=shape, num_classes=num_classes)
    return new_vae(architecture, params.seed)


def chosen(kind: Any, params: Params, **others: object) -> Any:
    """A dataclass whose fields are parameters, and others."""
    names = {field.name for field in fields(kind)} - others.keys()
    return kind(**{name: getattr(params, name) for name in names}, **others)


def prepare_outputs(
    checkpoint: Checkpoint, optimizer: Optimizer, best: BestEpoch, shown: Split
) -> None:
    """Restore the state and files of the checkpoint, or write the files of an untrained model."""
    for path in (HISTORY, *SAMPLES.glob("*.png*")):  # DVC deletes them; without it they may be left
        path.unlink(missing_ok=True)
    if checkpoint.epoch == 0:
        save_samples(optimizer.model, shown, epoch=0)
        return
    checkpoint.restore_files()
    optimizer.restore(checkpoint.tensors)
    best.restore(checkpoint.tensors)
    report(f"resuming after epoch {checkpoint.epoch}")


def write_epochs(
    records: Iterator[Record], epochs: range, params: Params, best: BestEpoch, shown: Split
) -> Iterator[int]:
    """Train, and write what belongs to each epoch; then yield its number."""
    threads = min(torch.get_num_threads(), MAX_THREADS)
    set_threads(share_of_cores(threads))
    total = params.num_epochs
    done = epochs.start - 1
    with tqdm(records, total=total, initial=done, unit="epoch", disable=None) as progress:
        for epoch, record in enumerate(progress, epochs.start):
            last = epoch if best.stops(epoch) else total
            progress.total = last
            set_threads(share_of_cores(threads))  # other experiments start and end
            progress.set_postfix_str(losses(record))
            # Before the line of the history: whoever reads that finds the pictures of its epoch.
            if epoch % params.sample_every == 0 or epoch == last:
                save_samples(best.model, shown, epoch)
                progress.write(f"train: epoch {epoch}/{last}: {losses(record)}")
            append(record)
            yield epoch


def save_samples(model: VAE, shown: Split, epoch: int) -> None:
    """Write what the model generates and reconstructs after `epoch`."""
    paths = [SAMPLES / f"{what}-epoch-{epoch:04d}.png" for what in ("generated", "reconstructed")]
    samples.save_samples(model, NUM_SAMPLES, shown, *paths)


def append(record: Record) -> None:
    """Add a line to the history, the first one below the names of its columns.

    Floats are written as Python does, so they read back equal.
    """
    names = "" if HISTORY.exists() else ",".join(record) + "\n"
    line = ",".join(map(repr, record.values())) + "\n"
    with writing(HISTORY), HISTORY.open("a", encoding="utf-8") as history:
        history.write(names + line)


def written_files() -> dict[str, bytes]:
    """The files of the training so far, by path."""
    return {path.as_posix(): path.read_bytes() for path in (HISTORY, *SAMPLES.glob("*.png"))}


def describe(split: Split) -> dict[str, str | int]:
    """The number of images, and the sha256 of their pixels."""
    return {"num_images": len(split.images), "sha256": digest(split.images)}


def losses(record: Record) -> str:
    """The losses of an epoch, for the terminal."""
    text = f"-ELBO {record['train/neg_elbo']:.2f}"
    val = record["val/neg_elbo"]
    return f"{text}, validation {val:.2f}" if math.isfinite(val) else text


def report(message: str) -> None:
    """Print a message without breaking the progress bar."""
    tqdm.write(f"train: {message}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
