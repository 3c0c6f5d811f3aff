"""An epoch of training, against the script that a user starts from and against the matrix products it is made of.

`python benchmarks/training.py [ROUNDS]`, in a clone that has data/raw. Whole epochs of 60,000 images of the script, of
`fit` in float32 and of `fit` in bfloat16 take turns; then, in a process of its own in every round, since where a
process lies on a shared machine decides what its memory costs, STEPS steps at a time of `fit` and of its products
alone, with the same shapes and layout and nothing between them. On a machine with a GPU all of it is done there, and
the 150 epochs of the default run as well. Prints medians, and JSON on the last line.
"""

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from baseline import epochs  # noqa: E402
from measure import hardware, ratios, spread, turns  # noqa: E402

from pipeline.params import load_params  # noqa: E402
from pipeline.runtime.device import prepare_device  # noqa: E402
from pipeline.training.fit import PRECISIONS, fit, new_optimizer  # noqa: E402
from pipeline.training.accelerated.layout import layout_for  # noqa: E402
from pipeline.data.mnist import PIXELS, load_images  # noqa: E402
from pipeline.model.vae import VAE  # noqa: E402
from pipeline.runtime.randomness import generator  # noqa: E402

STEPS = 150  # in a turn of the second part
PARAMS = load_params(ROOT / "params.yaml")
Turn = Callable[[], object]


def new_model(device: torch.device, seed: int = PARAMS.seed) -> VAE:
    """The default model."""
    model = VAE(
        x_dim=PIXELS, h_dim=PARAMS.h_dim, z_dim=PARAMS.z_dim, h_layers=PARAMS.h_layers, activation=PARAMS.activation
    )
    model.reset_parameters(generator(seed, "init"))
    return model.to(device)


def ours(images: torch.Tensor, precision: str, num_epochs: int = 10**9) -> Turn:
    """An epoch of `fit` over `images` at each call: all of it, the losses read at its end included."""
    model = new_model(images.device)
    optimizer = new_optimizer(model, PARAMS.learning_rate, precision)
    records = fit(
        model, optimizer, images, images[:0], num_epochs=num_epochs, batch_size=PARAMS.batch_size, seed=PARAMS.seed
    )
    return lambda: next(records)


def products(device: torch.device, precision: str) -> Turn:
    """STEPS times the matrix products of a step: forwards, by the weights, and by what went in but for the first."""
    working = new_optimizer(new_model(device), 1e-3, precision).working
    linear = [layer for net in (working.encoder, working.decoder) for layer in net if isinstance(layer, nn.Linear)]
    layout = layout_for(device, working.dtype)
    layers = [(layout(layer), *layer.weight.shape) for layer in linear]
    size = PARAMS.batch_size
    draw = {features: torch.randn(size, features, device=device) for layer in linear for features in layer.weight.shape}
    values = {features: layout.arrange(value.to(working.dtype)) for features, value in draw.items()}

    @torch.no_grad()
    def turn() -> None:
        for _ in range(STEPS):
            for i, (layer, n_out, n_in) in enumerate(layers):
                layer.forward(values[n_in])
                layer.weight_gradient(values[n_in], values[n_out])
                if i > 0:
                    layer.to_input(values[n_out])
        if device.type == "cuda":
            torch.cuda.synchronize()

    return turn


def step_and_products(precision: str) -> dict[str, list[float]]:
    """Seconds of STEPS steps and of their products, in turns."""
    device = prepare_device("auto", said_in="this machine")
    few = load_images(ROOT / "data/raw", "train")[: STEPS * PARAMS.batch_size].to(device)
    pair: dict[str, Turn] = {"step": ours(few, precision), "products": products(device, precision)}
    turns(pair, 2)
    return turns(pair, 4)


def main() -> None:
    """Take turns, print medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    device = prepare_device("auto", said_in="this machine")
    images = load_images(ROOT / "data/raw", "train").to(device)
    pictures = tempfile.TemporaryDirectory()
    script = epochs(ROOT / "data/raw", Path(pictures.name), device)
    arms: dict[str, Turn] = {"script": lambda: next(script)}
    arms |= {precision: ours(images, precision) for precision in PRECISIONS}
    turns(arms, 1)  # everything has been used once
    seconds = turns(arms, rounds)
    faster = {name: spread(values) for name, values in ratios(seconds, "script").items()}
    print(f"an epoch of 60,000 images on {device.type}, {rounds} rounds")
    for name, times in seconds.items():
        times_as_fast = f"{faster[name]['median']:.1f} times as fast as the script" if name in faster else ""
        print(f"  {name:10} {spread(times)['median']:6.2f} s  {times_as_fast}")

    over = {}
    for precision in PRECISIONS:
        found: dict[str, list[float]] = {"step": [], "products": []}
        for _ in range(rounds):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                for name, times in process.submit(step_and_products, precision).result().items():
                    found[name] += times
        over[precision] = spread(ratios(found, "step")["products"]) | {
            f"{name}_ms": 1e3 * spread(times)["median"] / STEPS for name, times in found.items()
        }
        print(
            "  a step in {}: {step_ms:.2f} ms, its matrix products alone {products_ms:.2f} ms: {median:.2f} times as "
            "long ({q1:.2f}–{q3:.2f}, n = {n})".format(precision, **over[precision])
        )
    whole = None
    if device.type == "cuda":
        turn, start = ours(images, "float32"), time.perf_counter()
        for _ in range(150):
            turn()
        whole = time.perf_counter() - start
        print(f"  150 epochs: {whole:.1f} s")
    print(json.dumps({
        "hardware": hardware(device), "seconds": seconds, "times_as_fast_as_the_script": faster,
        "step_over_products": over, "seconds_of_150_epochs": whole,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
