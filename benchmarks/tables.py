"""The tables of docs/results.md: `make tables`, or `python -m benchmarks.tables [TABLE ...]`.

Every row is a configuration, every seed of it a DVC experiment, found by its parameters. Those that
are not there yet are queued and executed, JOBS at a time (2 unless the environment says otherwise);
then the page is rendered from what the experiments recorded. `--render` renders only.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.measure import ROOT, hardware
from pipeline.commands.comparison.runs import Run, read_runs
from pipeline.commands.comparison.statistics import LEVEL, NORMAL, paired
from pipeline.params import DEFAULTS, load_params
from pipeline.runtime.git import experiments
from pipeline.runtime.tensor_file import read_tensors
from pipeline.tracking.client import Store, existing_store

PAGE = ROOT / "docs" / "results.md"
JOBS = os.environ.get("JOBS", "2")
SPAN = 10  # epochs: the times in MLflow are exact to a second


@dataclass(frozen=True)
class Table:
    """Rows, each a configuration by what it changes, with the published figures beside it."""

    title: str
    about: str
    metric: str
    common: Mapping[str, object]  # parameters of all rows
    rows: Mapping[str, Mapping[str, object]]
    published: Mapping[str, str]
    seeds: int = 3


TABLES = {
    "leaderboard": Table(
        title="Twenty epochs each",
        about="One change each to the default model. `nll_binarized` is an upper bound of −log p "
        "of one fixed binarization of the test images, so that different likelihoods compare. 200 "
        "draws per image make it looser than the default of 500, most of all for the conditional "
        "model, which has 20 for each digit. To a continuous Bernoulli black is dark gray, which "
        "is expensive on binary images ([metrics](metrics.md)).",
        metric="nll_binarized",
        common={"num_epochs": 20, "eval_samples": 200, "sample_every": 20},
        rows={
            "default": {},
            "continuous Bernoulli": {"likelihood": "continuous_bernoulli"},
            "Gaussian, learned sigma": {"likelihood": "gaussian"},
            "Gaussian, optimal sigma": {"likelihood": "gaussian", "sigma": "optimal"},
            "mixture prior": {"prior": "mixture", "prior_components": 50},
            "VampPrior": {"prior": "vamp", "prior_components": 50},
            "IWAE, 5 samples": {"objective": "iwae", "num_samples": 5},
            "DReG, 5 samples": {"objective": "dreg", "num_samples": 5},
            "ELBO, 5 samples": {"num_samples": 5},
            "warm-up of 10 epochs": {"warmup_epochs": 10},
            "free bits": {"free_bits": 0.1},
            "cosine schedule": {"lr_schedule": "cosine"},
            "dynamic binarization": {"binarize": "dynamic"},
            "convolutions": {"network": "conv", "h_layers": 2},
            "conditional": {"conditional": True},
        },
        published={},
    ),
    "static": Table(
        title="784-400-40 on fixed binarization",
        about="Adam 1e-4, batches of 100, 500 epochs, step schedule; −log p(x) with 200 draws, as "
        "in the [reproduction](https://github.com/clementchadebec/benchmark_VAE) of pythae, which "
        "reports 89.78 and cites 89.9. Its script has one hidden layer of 400 on each side, and a "
        "second one that is commented out. Ours meets the figure with two, not with one, so we "
        "take it for that of two. The binarized test images differ, which explains 0.06.",
        metric="nll",
        common={
            "binarize": "fixed", "z_dim": 40, "batch_size": 100, "learning_rate": 1e-4,
            "num_epochs": 500, "lr_schedule": "step", "eval_samples": 200,
            "eval_proposal_scale": 1.0, "val_size": 10000, "sample_every": 100,
        },
        rows={"one hidden layer": {}, "two hidden layers": {"h_layers": 2}},
        published={"two hidden layers": "89.9, 89.78"},
        seeds=1,
    ),
    "dynamic": Table(
        title="784-200-200-50, tanh, on dynamic binarization",
        about="One stochastic layer as in Burda, Grosse & Salakhutdinov (2016), table 1: 86.76 and "
        "85.54 after 3,280 epochs; 86.35 and 85.18 in a later reproduction. −log p(x) with 5,000 "
        "draws. Each run had one thread.",
        metric="nll",
        common={
            "binarize": "dynamic", "z_dim": 50, "h_dim": 200, "h_layers": 2, "activation": "tanh",
            "batch_size": 100, "learning_rate": 2e-3, "lr_schedule": "cosine",
            "eval_samples": 5000, "eval_proposal_scale": 1.0, "val_size": 0, "sample_every": 100,
        },
        rows={
            "VAE": {"num_epochs": 1000},
            "IWAE, 5 samples": {"objective": "iwae", "num_samples": 5, "num_epochs": 550},
        },
        published={"VAE": "86.76, 86.35", "IWAE, 5 samples": "85.54, 85.18"},
    ),
    "priors": Table(
        title="Priors on fixed binarization",
        about="784-300-300-40, as in Tomczak & Welling (2018), whose layers have gates, who train "
        "longer, with warm-up and early stopping, and measure with 5,000 draws; here 500.",
        metric="nll",
        common={
            "binarize": "fixed", "z_dim": 40, "h_dim": 300, "h_layers": 2, "batch_size": 100,
            "learning_rate": 5e-4, "num_epochs": 150, "lr_schedule": "cosine",
            "eval_proposal_scale": 1.0, "val_size": 10000, "sample_every": 50,
        },
        rows={"N(0, I)": {}, "VampPrior": {"prior": "vamp", "prior_components": 500}},
        published={"N(0, I)": "88.56", "VampPrior": "85.57"},
        seeds=1,
    ),
    "conditional": Table(
        title="Samples of a chosen class",
        about="Share of 10,000 samples that the classifier assigns to the label they were drawn "
        "with: higher is better.",
        metric="label_agreement",
        common={
            "conditional": True, "num_epochs": 40, "eval_samples": 200, "sample_every": 40,
        },
        rows={"one hidden layer": {}, "two hidden layers": {"h_layers": 2}},
        published={},
        seeds=1,
    ),
    "recipe": Table(
        title="A recipe for an hour on two cores",
        about="The best of some ten settings in short trainings, by the validation images.",
        metric="nll_binarized",
        common={
            "binarize": "dynamic", "z_dim": 50, "h_dim": 800, "h_layers": 2, "activation": "gelu",
            "objective": "iwae", "num_samples": 5, "batch_size": 200, "learning_rate": 2e-3,
            "num_epochs": 200, "lr_schedule": "cosine", "precision": "bfloat16",
            "eval_proposal_scale": 1.0, "sample_every": 50,
        },
        rows={"VampPrior, 100 components": {"prior": "vamp", "prior_components": 100}},
        published={},
        seeds=1,
    ),
}  # fmt: skip


def queue(chosen: list[str], runs: Iterable[Run]) -> list[str]:
    """Queue what is not there yet; return the names."""
    queued = []
    for key in chosen:
        table = TABLES[key]
        for seed in range(1, table.seeds + 1):
            for row, changes in enumerate(table.rows.values()):
                params = {**table.common, **changes, "seed": seed}
                if not find(params, runs):
                    queued.append(f"{key}-{row:02}-s{seed}")
                    options = settings(params).split()
                    _dvc("exp", "run", "--queue", "-n", queued[-1], *options)
    return queued


def execute(queued: list[str]) -> None:
    """Run the queue to its end. An experiment that fails is left out of the page."""
    if queued:
        _dvc("queue", "start", "-j", JOBS)
    while any(word in _dvc("queue", "status") for word in ("Queued", "Running")):
        time.sleep(10)


def render(runs: Iterable[Run], store: Store | None) -> str:
    """The page."""
    machine = hardware(torch.device("cpu"))
    minutes = durations(store)
    lines = [
        "# Results", "",
        "Written by `make tables`. Nats per image, mean of all 10,000 test images, lower is "
        "better. ± is a 95 % interval: over seeds (Student's t) if there are several, else over "
        "the images. A difference is paired, image by image; if either row has one seed, its "
        "interval excludes the variance over seeds (those of the default lie some 0.2 apart).",
        "",
        "Seeds are 1, 2, 3: to repeat a row, add `-S seed=1`. Minutes are those of training, the "
        f"median time of {SPAN} epochs times their number, with {JOBS} runs at a time and other "
        f"work on {machine['cores']} cores of an {machine['cpu']} (PyTorch {machine['torch']}): "
        "they tell an order of magnitude, not which of two rows is faster.",
    ]  # fmt: skip
    for table in TABLES.values():
        lines += ["", f"## {table.title}", "", table.about, ""]
        lines += [f"All rows: `dvc exp run {settings(table.common)}`", ""]
        rows = {title: executed(table, title, runs) for title in table.rows}
        found = {title: seeds for title, seeds in rows.items() if seeds}
        if found:
            lines += rendered(table, found, minutes)
        if missing := [title for title in rows if title not in found]:
            lines += [f"Not executed yet: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def rendered(
    table: Table, found: Mapping[str, list[Run]], minutes: Mapping[str, float]
) -> list[str]:
    """The lines of a table, best first."""
    names = ["", "parameters", table.metric, f"difference from {next(iter(found))}"]
    names += ["published", "seeds", "weights", "minutes"]
    rows = sorted(
        (cells(table, title, found, minutes) for title in found),
        key=lambda row: float(row[2].split()[0]),
    )
    empty = {index for index in range(len(names)) if not any(row[index] for row in rows)}
    lines = [names, ["---"] * len(names), *rows]
    kept = [[cell for index, cell in enumerate(row) if index not in empty] for row in lines]
    return [*map(line, kept), ""]


def durations(store: Store | None) -> dict[str, float]:
    """Minutes of the trainings, by the name of the MLflow run; interruptions do not count."""
    found = {}
    for run in store.runs() if store else []:
        points = store.client.get_metric_history(run.info.run_id, "train/neg_elbo")
        times = np.array([point.timestamp for point in sorted(points, key=attrgetter("step"))])
        if len(times) > SPAN:
            found[run.info.run_name] = np.median(times[SPAN:] - times[:-SPAN]) * len(times) / SPAN
    return {name: milliseconds / 60_000 for name, milliseconds in found.items()}


def find(changes: Mapping[str, object], runs: Iterable[Run]) -> Run | None:
    """The run with these parameters, and the rest as in params.yaml; None if there is none."""
    wanted = {**load_params().model_dump(), **changes}
    return next((run for run in runs if {**DEFAULTS, **run.params} == wanted), None)


def executed(table: Table, title: str, runs: Iterable[Run]) -> list[Run]:
    """The runs of a row, at most one per seed."""
    changes = {**table.common, **table.rows[title]}
    found = [find({**changes, "seed": seed}, runs) for seed in range(1, table.seeds + 1)]
    return [run for run in found if run and table.metric in run.metrics]


def cells(
    table: Table, title: str, found: Mapping[str, list[Run]], minutes: Mapping[str, float]
) -> list[str]:
    """The cells of a row, given the runs of all: see the names of the columns in `render`."""
    runs, first = found[title], next(iter(found.values()))
    values = np.array([run.metrics[table.metric] for run in runs])
    half = NORMAL * runs[0].metrics[f"{table.metric}_se"]
    if len(values) > 1:
        half = stats.sem(values) * stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)
    weights = sum(prod(tensor.shape) for tensor in read_tensors(runs[0].model).values())
    changes = f"`{settings(table.rows[title])}`" if table.rows[title] else ""
    mean_minutes = np.mean([minutes.get(run.name, np.nan) for run in runs])
    digits = 2 if values.mean() > 1 else 4
    metric = f"{values.mean():.{digits}f} ± {half:.{digits}f}"
    less = "" if runs is first else difference(runs, first, table.metric)
    published = table.published.get(title, "")
    seeds = str(len(runs))
    return [title, changes, metric, less, published, seeds, f"{weights:,}", f"{mean_minutes:.0f}"]


def settings(params: Mapping[str, object]) -> str:
    """The parameters as `dvc exp run` takes them."""
    texts = {key: str(value).lower() if value is True else value for key, value in params.items()}
    return " ".join(f"-S {key}={text}" for key, text in texts.items())


def difference(ours: list[Run], theirs: list[Run], metric: str) -> str:
    """The paired difference of two rows, with its 95 % interval."""
    if metric not in ours[0].per_image:
        return ""
    values = [np.array([run.per_image[metric] for run in runs]) for runs in (ours, theirs)]
    found = paired(*values)
    return f"{found.value:+.2f} ± {found.half:.2f}" if found else ""


def line(cells: list[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Execute what is missing and write the page."""
    chosen = [word for word in sys.argv[1:] if word != "--render"] or list(TABLES)
    if "--render" not in sys.argv:
        execute(queue(chosen, executed_runs()))
    PAGE.write_text(render(executed_runs(), existing_store(ROOT)), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}")


def executed_runs() -> list[Run]:
    """All experiments."""
    return read_runs({entry.name: entry for entry in experiments(ROOT)}, ROOT)


def _dvc(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "dvc"), *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
