"""The tables of docs/results.md: `make tables`, or `python -m benchmarks.tables [TABLE ...]`.

Every row is a configuration, every seed of it a DVC experiment of HEAD. Those that are not there
yet are queued and executed, JOBS at a time (2 unless the environment says otherwise); then the page
is rendered from what the experiments recorded. `--render` renders only.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from benchmarks.measure import ROOT, hardware
from pipeline.commands.comparison.runs import Run, read_runs
from pipeline.commands.comparison.statistics import LEVEL, NORMAL, paired
from pipeline.runtime.git import experiments
from pipeline.runtime.tensor_file import read_tensors
from pipeline.tracking.client import Store, existing_store

PAGE = ROOT / "docs" / "results.md"
JOBS = os.environ.get("JOBS", "2")


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
        title="An equal budget: 20 epochs",
        about="One change each to the default model. `nll_binarized` compares all of them: nats "
        "per image for one fixed binarization of the test images.",
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
        about="Adam 1e-4, batches of 100, 500 epochs, step schedule; −log p(x) with 200 draws. The "
        "published figures are of another fixed binarization.",
        metric="nll",
        common={
            "binarize": "fixed", "z_dim": 40, "batch_size": 100, "learning_rate": 1e-4,
            "num_epochs": 500, "lr_schedule": "step", "eval_samples": 200,
            "eval_proposal_scale": 1.0, "val_size": 10000, "sample_every": 100,
        },
        rows={"VAE": {}, "two hidden layers": {"h_layers": 2}},
        published={"VAE": "89.9; 89.78 reproduced"},
        seeds=1,
    ),
    "dynamic": Table(
        title="784-200-200-50, tanh, on dynamic binarization",
        about="One stochastic layer as in Burda et al. (2016), table 1; −log p(x) with 5,000 "
        "draws. Both rows were given less than an hour on one core; theirs are of 3,280 epochs.",
        metric="nll",
        common={
            "binarize": "dynamic", "z_dim": 50, "h_dim": 200, "h_layers": 2, "activation": "tanh",
            "batch_size": 100, "learning_rate": 2e-3, "lr_schedule": "cosine",
            "eval_samples": 5000, "eval_proposal_scale": 1.0, "val_size": 0, "sample_every": 100,
        },
        rows={
            "VAE": {"num_epochs": 1000},
            "IWAE, 5 samples": {"objective": "iwae", "num_samples": 5, "num_epochs": 400},
        },
        published={"VAE": "86.76; 86.35", "IWAE, 5 samples": "85.54; 85.18"},
    ),
    "priors": Table(
        title="Priors on fixed binarization",
        about="784-300-300-40, as in Tomczak & Welling (2018), without gates.",
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
        title="The best within an hour on two cores",
        about="Chosen by the validation images among short trainings.",
        metric="nll_binarized",
        common={
            "binarize": "dynamic", "z_dim": 50, "h_dim": 800, "h_layers": 2, "activation": "gelu",
            "objective": "iwae", "num_samples": 5, "batch_size": 200, "learning_rate": 2e-3,
            "num_epochs": 200, "lr_schedule": "cosine", "precision": "bfloat16",
            "eval_proposal_scale": 1.0, "sample_every": 50,
        },
        rows={"VampPrior of 100": {"prior": "vamp", "prior_components": 100}},
        published={},
        seeds=1,
    ),
}  # fmt: skip


def name(table: str, row: int, seed: int) -> str:
    """The name of an experiment."""
    return f"{table}-{row:02}-s{seed}"


def queue(chosen: list[str], present: set[str]) -> list[str]:
    """Queue what is not there yet; return the names."""
    queued = []
    for key in chosen:
        table = TABLES[key]
        for seed in range(1, table.seeds + 1):
            for row, changes in enumerate(table.rows.values()):
                experiment = name(key, row, seed)
                if experiment in present:
                    continue
                params = {**table.common, **changes, "seed": seed}
                _dvc("exp", "run", "--queue", "-n", experiment, *settings(params).split())
                queued.append(experiment)
    return queued


def execute(queued: list[str]) -> None:
    """Run the queue to its end. An experiment that fails is left out of the page."""
    if queued:
        _dvc("queue", "start", "-j", JOBS)
    while any(word in _dvc("queue", "status") for word in ("Queued", "Running")):
        time.sleep(10)


def render(runs: Mapping[str, Run], store: Store | None) -> str:
    """The page."""
    machine = hardware(torch.device("cpu"))
    minutes = durations(store)
    lines = [
        "# Results", "",
        "Written by `make tables`. Means over seeds with 95 % intervals over seeds, or over test "
        "images if there is one seed; nats per image of all 10,000 test images, lower is better. "
        "Differences are paired, image by image; those of a single seed do not include the "
        "variance over seeds. "
        "Minutes are those of one run from the first epoch to the end of the evaluation, beside "
        f"whatever else the machine did: {JOBS} runs at a time on {machine['cores']} cores of "
        f"an {machine['cpu']}, PyTorch {machine['torch']}.",
    ]  # fmt: skip
    for key, table in TABLES.items():
        found = {title: seeds for title in table.rows if (seeds := executed(key, title, runs))}
        if not found:
            continue
        command = f"dvc exp run {settings(table.common)}"
        lines += ["", f"## {table.title}", "", table.about, "", f"All rows: `{command}`", ""]
        first = next(iter(found))
        names = ["", "parameters", table.metric, f"less {first}", "n", "weights", "minutes"]
        rows = [cells(table, title, found, minutes) for title in found]
        if table.published:
            names.insert(4, "published")
            for row in rows:
                row.insert(4, table.published.get(row[0], ""))
        lines += [line(names), line(["---"] * len(names))]
        lines += map(line, sorted(rows, key=lambda row: float(row[2].split()[0])))
    return "\n".join(lines) + "\n"


def durations(store: Store | None) -> dict[str, float]:
    """Minutes of the MLflow runs, by name."""
    infos = [run.info for run in store.runs()] if store else []
    return {
        info.run_name: (info.end_time - info.start_time) / 60_000 for info in infos if info.end_time
    }


def executed(key: str, title: str, runs: Mapping[str, Run]) -> list[Run]:
    """The runs of a row, one per seed. One with other parameters is of an earlier table."""
    table = TABLES[key]
    found = []
    for seed in range(1, table.seeds + 1):
        run = runs.get(name(key, list(table.rows).index(title), seed))
        wanted = {**table.common, **table.rows[title], "seed": seed}
        if run and table.metric in run.metrics and wanted.items() <= run.params.items():
            found.append(run)
    return found


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
    return [title, changes, metric, less, str(len(runs)), f"{weights:,}", f"{mean_minutes:.1f}"]


def settings(params: Mapping[str, object]) -> str:
    """The parameters as `dvc exp run` takes them."""
    return " ".join(
        f"-S {key}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in params.items()
    )


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
        execute(queue(chosen, {entry.name for entry in experiments(ROOT)}))
    entries = {entry.name: entry for entry in experiments(ROOT)}
    runs = {run.name: run for run in read_runs(entries, ROOT)}
    PAGE.write_text(render(runs, existing_store(ROOT)), encoding="utf-8")
    print(f"Wrote {PAGE.relative_to(ROOT)}")


def _dvc(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "dvc"), *arguments]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
