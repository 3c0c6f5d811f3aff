"""Stage `train`: the dataset -> a trained VAE, its history, and sample grids from along the way.

Interrupted at any moment and run again, it ends in the same bytes as if it had not been
interrupted.
"""

import hashlib
import math
import sys
from collections.abc import Iterator

import torch
from tqdm import tqdm

from pipeline.data.datasets import Split, hold_out, load_split, to_unit
from pipeline.errors import UserError, run, writing
from pipeline.figures.grids import save_grid, save_pairs
from pipeline.figures.samples import generate, reconstruct
from pipeline.model.network import Architecture
from pipeline.model.objective import ElboTerms
from pipeline.model.vae import VAE, new_vae, save_vae
from pipeline.params import Params, load_params
from pipeline.paths import DATASET, HISTORY, MODEL, SAMPLES
from pipeline.runtime.cores import share_of_cores
from pipeline.runtime.device import device_name, has_fast_bfloat16, prepare_device, set_threads
from pipeline.runtime.files import sha256_file
from pipeline.runtime.fingerprint import fingerprint, provenance
from pipeline.runtime.pending_run import follow_training
from pipeline.training.checkpoint import Checkpoint, CheckpointFile, restore_files
from pipeline.training.fit import COLUMNS, MAX_THREADS, DivergenceError, Record, fit
from pipeline.training.optimizer import Optimizer

NUM_PAIRS = 32
NUM_SAMPLES = 64


def main() -> None:
    """Read the declared inputs, train, write the declared outputs."""
    params = load_params()
    device = prepare_device(params.device)
    split = load_split(DATASET, "train").to(device)
    train, val = split_images(split, params.val_size)
    # The last images of the dataset: the same in every run, and held out if val_size allows it.
    _, shown = hold_out(split, min(NUM_PAIRS, len(split.images)))
    model = build_model(params, split).to(device)
    optimizer = Optimizer(model, params.learning_rate, params.precision)
    origin = provenance(params.model_dump(), device_name(device))
    key = fingerprint(origin, params.model_dump())
    origin["splits"] = {"training": describe(train)}
    if params.val_size:
        origin["splits"]["validation"] = describe(val)

    print(f"train: {len(train.images)} images, {params.val_size} held out, on {device}")
    if params.precision == "bfloat16" and not has_fast_bfloat16(device):
        report("this device has no bfloat16 instructions; float32 is faster on it")
    with CheckpointFile(key, report) as file:
        checkpoint = file.load() or Checkpoint(0, "", {}, {})
        prepare_outputs(checkpoint, optimizer, shown)
        with follow_training(key, origin, checkpoint.execution or None) as pending_run:
            epochs = train_epochs(
                params, optimizer, train=train, val=val, shown=shown, done=checkpoint.epoch
            )
            try:
                for epoch in epochs:
                    if file.is_due():
                        state = (optimizer.state(), written_files())
                        file.save(Checkpoint(epoch, pending_run.execution, *state))
            except DivergenceError as error:
                file.remove()  # the training would diverge again from there
                raise diverged(error, params) from error
            save_vae(model, MODEL, origin)
            pending_run.finish(sha256_file(MODEL))
        file.remove()
    print(f"train: wrote {MODEL}, {HISTORY} and {SAMPLES}/")


def split_images(split: Split, val_size: int) -> tuple[Split, Split]:
    """(for training, for validation). Raises UserError if nothing would be left to train on."""
    count = len(split.images)
    if val_size >= count:
        raise UserError(
            "params.yaml: val_size", f"must be less than the {count} images (got {val_size})"
        )
    return hold_out(split, val_size)


def build_model(params: Params, split: Split) -> VAE:
    """The untrained model that the parameters describe."""
    architecture = Architecture(
        network=params.network,
        likelihood=params.likelihood,
        image_shape=split.image_shape,
        z_dim=params.z_dim,
        h_dim=params.h_dim,
        h_layers=params.h_layers,
        activation=params.activation,
    )
    return new_vae(architecture, params.seed)


def prepare_outputs(checkpoint: Checkpoint, optimizer: Optimizer, shown: Split) -> None:
    """Restore the state and files of the checkpoint, or write the files of an untrained model."""
    with writing(SAMPLES.parent):
        SAMPLES.mkdir(parents=True, exist_ok=True)
        for picture in SAMPLES.glob("*.png"):  # DVC deletes them; without DVC they may be left
            picture.unlink()
        if checkpoint.epoch == 0:
            HISTORY.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
            save_samples(optimizer.model, shown, epoch=0)
            return
        restore_files(checkpoint)
    optimizer.restore(checkpoint.tensors)
    report(f"resuming after epoch {checkpoint.epoch}")


def train_epochs(
    params: Params, optimizer: Optimizer, *, train: Split, val: Split, shown: Split, done: int
) -> Iterator[int]:
    """Run the epochs after `done`. Yields the number of each when its files are written."""
    records = fit(
        optimizer,
        train,
        val,
        num_epochs=params.num_epochs,
        batch_size=params.batch_size,
        seed=params.seed,
        epochs_done=done,
        report=report,
    )
    threads = min(torch.get_num_threads(), MAX_THREADS)
    set_threads(share_of_cores(threads))
    total = params.num_epochs
    with tqdm(records, total=total, initial=done, unit="epoch", disable=None) as progress:
        for record in progress:
            set_threads(share_of_cores(threads))  # other experiments start and end
            epoch = int(record["epoch"])
            progress.set_postfix_str(losses(record))
            # Before the line of the history: whoever reads that finds the pictures of its epoch.
            if epoch % params.sample_every == 0 or epoch == total:
                save_samples(optimizer.model, shown, epoch)
                progress.write(f"train: epoch {epoch}/{total}: {losses(record)}")
            append(record)
            yield epoch


def save_samples(model: VAE, shown: Split, epoch: int) -> None:
    """Write what the model generates and reconstructs after `epoch`."""
    labels = torch.arange(NUM_SAMPLES) % 10
    reconstructions = reconstruct(model, shown.images, shown.labels)
    originals = to_unit(shown.images).cpu()
    shape = shown.image_shape
    with writing(SAMPLES):
        save_grid(generate(model, labels), shape, SAMPLES / f"generated-epoch-{epoch:04d}.png")
        save_pairs(
            originals, reconstructions, shape, SAMPLES / f"reconstructed-epoch-{epoch:04d}.png"
        )


def append(record: Record) -> None:
    """Add a line to the history. Floats are written as Python does, so they read back equal."""
    line = ",".join(repr(record[column]) for column in COLUMNS)
    with writing(HISTORY), HISTORY.open("a", encoding="utf-8") as history:
        history.write(line + "\n")


def written_files() -> dict[str, bytes]:
    """The files of the training so far, by path."""
    return {path.as_posix(): path.read_bytes() for path in (HISTORY, *SAMPLES.glob("*.png"))}


def describe(split: Split) -> dict[str, str | int]:
    """The number of images, and the sha256 of their pixels."""
    digest = hashlib.sha256(split.images.cpu().numpy().tobytes()).hexdigest()
    return {"num_images": len(split.images), "sha256": digest}


def diverged(error: DivergenceError, params: Params) -> UserError:
    """What to change if the loss is NaN or infinite."""
    when = f"step {error.step}" if error.step else "validation"
    return UserError(
        "params.yaml: learning_rate",
        f"the loss is not finite in epoch {error.epoch}, {when}; lower learning_rate (now "
        f"{params.learning_rate}), then try another batch_size ({params.batch_size}) or fewer "
        f"h_layers ({params.h_layers})",
    )


def losses(record: Record) -> str:
    """The losses of an epoch, for the terminal."""
    terms = ", ".join(f"{term} {record[f'train/{term}']:.2f}" for term in ElboTerms._fields)
    text = f"-ELBO {record['train/neg_elbo']:.2f} ({terms})"
    val = record["val/neg_elbo"]
    return f"{text}, val {val:.2f}" if math.isfinite(val) else text


def report(message: str) -> None:
    """Print a message without breaking the progress bar."""
    tqdm.write(f"train: {message}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
