"""What a GPU gives: `make bench-gpu`, or `python -m benchmarks.gpu [EPOCHS]` after `make repro`.

The tests that need one; the default training twice and once resumed, bit by bit; -ELBO against the
CPU's; -log p(x) with 500 and 5,000 draws; two trainings on one device; the kernels of an epoch. A
part that fails is recorded with its message, and the others go on. JSON on the last line.

Needs neither DVC nor MLflow, but data/dataset.safetensors, PyTorch, and of the lock: filelock,
joblib, numpy, pydantic, pytest, pyyaml, safetensors, threadpoolctl, tqdm.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.measure import PARAMS, ROOT, default_model, hardware, rounds_from
from pipeline.data.datasets import Split, hold_out, load_split
from pipeline.evaluation.bounds import elbo, nll_bounds
from pipeline.evaluation.reconstruction import choose
from pipeline.model.network import to_batch
from pipeline.model.vae import VAE
from pipeline.paths import DATASET, METRICS
from pipeline.runtime.device import prepare_device
from pipeline.training.fit import Record, fit
from pipeline.training.optimizer import Optimizer

TESTS = ("-m", "gpu", "-o", "addopts=", "tests/training/test_fit.py")
DRAWS = (500, 5000)
PRECISIONS = ("float32", "tf32", "bfloat16")
SHARED = os.environ | {"GPU_JOBS": "8"}  # this process has a place on the GPU, too
LIMIT = 200  # seconds
ALONE = "import sys; from benchmarks.gpu import train_alone; train_alone(int(sys.argv[1]))"
KERNELS = "from benchmarks.gpu import print_kernels; print_kernels()"


class Training:
    """The default model, optimizer and data on a device; `advance` trains on."""

    def __init__(self, device: torch.device, precision: str = "float32", seed: int = 0) -> None:
        split = load_split(ROOT / DATASET, "train").to(device)
        self.splits = hold_out(split, PARAMS.val_size)
        self.seed, self.epoch = seed, 0
        self.optimizer = Optimizer(default_model(split, seed), PARAMS.learning_rate, precision)

    def advance(self, num_epochs: int) -> Iterator[Record]:
        """The records of so many further epochs."""
        epochs = range(self.epoch + 1, self.epoch + num_epochs + 1)
        self.epoch += num_epochs
        options = {"batch_size": PARAMS.batch_size, "seed": self.seed}
        return fit(self.optimizer, *self.splits, epochs, **options)

    def state(self) -> dict[str, Tensor]:
        """On the CPU."""
        return {name: tensor.cpu() for name, tensor in self.optimizer.state().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states have the same bits."""
    return all(torch.equal(one[name], tensor) for name, tensor in other.items())


def run_tests(device: torch.device, num_epochs: int) -> dict[str, Any]:
    """The tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", *TESTS]
    done = subprocess.run(
        command, cwd=ROOT, env=SHARED, timeout=LIMIT, capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"status": done.returncode, "failed": failed, "last_line": lines[-1] if lines else ""}


def train(device: torch.device, num_epochs: int) -> dict[str, Any]:
    """The whole training: its time, its bits twice and resumed, and -ELBO of the test images."""
    test = load_split(ROOT / DATASET, "test")
    record: dict[str, Any] = {"epochs": num_epochs}
    for precision in PRECISIONS if device.type == "cuda" else PRECISIONS[:1]:
        first = Training(device, precision)
        start = time.perf_counter()
        list(first.advance(num_epochs))
        seconds = time.perf_counter() - start
        second, resumed = Training(device, precision), Training(device, precision)
        list(second.advance(num_epochs // 2))
        resumed.optimizer.restore(second.optimizer.state())
        resumed.epoch = second.epoch
        for training in (second, resumed):
            list(training.advance(num_epochs - num_epochs // 2))
        terms, _, _ = elbo(first.optimizer.model, test)
        record[precision] = {
            "seconds": seconds,
            "same_bits_in_two_parts": equal(first.state(), second.state()),
            "same_bits_resumed": equal(first.state(), resumed.state()),
            "test_neg_elbo": float(terms.neg_elbo.double().mean()),
        }
    committed = json.loads((ROOT / METRICS).read_text(encoding="utf-8"))
    return record | {"committed_test_neg_elbo": committed["test"]["neg_elbo"]}


def evaluate(device: torch.device, num_epochs: int) -> dict[str, Any]:
    """Seconds of -log p(x) of all test images, for a model of one epoch."""
    training = Training(device)
    list(training.advance(1))
    model: VAE = training.optimizer.model
    split: Split = load_split(ROOT / DATASET, "test")
    recons = choose(model, to_batch(split[:10], device))
    threads, record = torch.get_num_threads(), {}
    for draws in DRAWS:
        start = time.perf_counter()
        found = nll_bounds(model, split, recons, (draws, PARAMS.eval_proposal_scale), threads)
        nll = float(found.widened[:, -1].double().mean())
        record[str(draws)] = {"seconds": time.perf_counter() - start, "nll": nll}
    return record


def train_alone(num_epochs: int) -> None:
    """Train in a process of its own; print the sum of the weights, exactly."""
    training = Training(prepare_device("auto"))
    list(training.advance(num_epochs))
    weights = torch.cat([value.flatten() for value in training.state().values()]).double()
    print(weights.sum().item().hex(), weights.square().sum().item().hex())


def share(device: torch.device, num_epochs: int) -> dict[str, Any]:
    """Two trainings one after the other, and at the same time: seconds, and whether bits differ."""
    command = [sys.executable, "-c", ALONE, str(num_epochs)]

    def run(count: int) -> list[str]:
        options = {"cwd": ROOT, "env": SHARED, "stdout": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, **options) for _ in range(count)]
        try:
            printed = [process.communicate(timeout=LIMIT)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        if any(process.returncode for process in processes):
            raise RuntimeError("a training failed, maybe for lack of memory: see above")
        return printed

    begin = time.perf_counter()
    one_by_one = run(1) + run(1)
    middle = time.perf_counter()
    together = run(2)
    end = time.perf_counter()
    is_same = len({*one_by_one, *together}) == 1 and bool(one_by_one[0])
    return {"one_by_one": middle - begin, "together": end - middle, "same_bits": is_same}


def count_kernels(device: torch.device, num_epochs: int) -> dict[str, Any]:
    """Kernels and copies of an epoch per step, with those of validation: how many, how long.

    In a process of its own: the profiler may end it.
    """
    command = [sys.executable, "-c", KERNELS]
    options = {"cwd": ROOT, "env": SHARED, "stdout": subprocess.PIPE, "text": True}
    done = subprocess.run(command, timeout=LIMIT, check=True, **options)
    return json.loads(done.stdout.splitlines()[-1])


def print_kernels() -> None:
    """See `count_kernels`."""
    device, record = prepare_device("auto"), {}
    for precision in PRECISIONS if device.type == "cuda" else ():
        training = Training(device, precision)
        records = training.advance(2)
        next(records)
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            next(records)
            torch.cuda.synchronize()
        steps = -(-len(training.splits[0].images) // PARAMS.batch_size)
        events = [event for event in found.events() if event.device_type == DeviceType.CUDA]
        if not events:
            raise RuntimeError("the profiler saw no kernel")
        micros: Counter[str] = Counter()
        for event in events:
            micros[event.name[:100]] += event.device_time / steps
        record[precision] = {
            "per_step": len(events) / steps,
            "microseconds_per_step": dict(micros.most_common(25)),
        }
    print(json.dumps(record))


PARTS: tuple[Callable[[torch.device, int], dict[str, Any]], ...] = (
    run_tests, train, evaluate, share, count_kernels,
)  # fmt: skip


def main() -> None:
    """Measure part by part."""
    num_epochs = rounds_from(sys.argv, PARAMS.num_epochs)
    device = prepare_device("cuda")
    record: dict[str, Any] = {"hardware": hardware(device)}
    for part in PARTS:
        name = part.__name__
        try:
            record[name] = part(device, num_epochs)
        except Exception as error:
            record[name] = {"error": repr(error)}
        print(f"{name}: {json.dumps(record[name])}", flush=True)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
