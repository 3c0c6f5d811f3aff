"""What a run says of itself to a person: its name, and a page of Markdown in the UI."""

import platform
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.tracking.results import Execution
from pipeline.params import Params
from pipeline.runtime.git import Source

SHOWN = ("nll", "neg_elbo", "recon", "kl", "active_units", "fd_judge")


def short_name(params: Params) -> str:
    """A run's name where no DVC experiment gives it one."""
    return (
        f"z{params.z_dim}-h{params.h_dim}x{params.h_layers}-{params.activation}"
        f"-lr{params.learning_rate:g}-e{params.num_epochs}-s{params.seed}"
    )


def tags_of(provenance: Mapping[str, Any], source: Source) -> dict[str, str]:
    """Where an execution stands in git and DVC, and what it was executed with."""
    tags = {
        "fingerprint": provenance["fingerprint"],
        "device": provenance["device"],
        **{f"version.{name}": number for name, number in provenance["versions"].items()},
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc exp run" if source.experiment else "dvc repro",
        "mlflow.source.git.commit": source.baseline,
        "git.dirty": str(source.dirty).lower(),
        "dvc.restore": restore(source),
    }
    if source.experiment:  # its parameters are a change to the baseline, and DVC keeps them under its name
        tags |= {"dvc.exp_name": source.experiment, "dvc.baseline": source.baseline}
    return tags


def cpu() -> str:
    """This machine's CPU in words: equal bytes are promised on the same one."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def restore(source: Source) -> str:
    """The literal commands that bring back the files of an execution."""
    if source.experiment:
        return f"dvc exp apply {shlex.quote(source.experiment)}"
    if not source.baseline:
        return "dvc repro"
    # Not `dvc checkout`: the commit's dvc.lock may be older than these files. The run-cache has what was computed.
    apply = "git apply git.diff && " if source.dirty else ""
    return f"git checkout {source.baseline[:10]} && {apply}dvc repro"


def describe(execution: Execution, source: Source, defaults: Mapping[str, object] | None) -> str:
    """The page: what differs from `defaults` (the baseline's parameters), what came out, how to get it back."""
    parts = [
        *_changed(execution.params.model_dump(), source, defaults),
        _results(execution.metrics),
        f"To get these files back:\n\n    {restore(source)}",
    ]
    if source.dirty and not source.experiment:
        parts.append("`git.diff` is under Artifacts.")
    return "\n\n".join(parts)


def same_results(experiment: str) -> str:
    """The paragraph that is added when an experiment is given these results out of DVC's run-cache."""
    return f"The same results, out of DVC's run-cache:\n\n    dvc exp apply {shlex.quote(experiment)}"


def _changed(params: Mapping[str, object], source: Source, defaults: Mapping[str, object] | None) -> Iterator[str]:
    commit = f"commit `{source.baseline[:10]}`" if source.baseline else "no commit"
    code = sorted({line.split(" b/")[-1] for line in source.diff.split("\n") if line.startswith("diff --git ")})
    files = [f"`{name}`" for name in code if name != "params.yaml"]
    files += [f"`{name}` (not in git)" for name in source.untracked]
    if files:
        yield f"Changed against {commit}: {', '.join(files)}."
    if defaults is None:
        return
    changed = [f"| `{key}` | {value} | {defaults[key]} |" for key, value in params.items() if value != defaults[key]]
    if changed:
        yield "\n".join([f"| parameter | here | {commit} |", "|---|---|---|", *changed])
    else:
        yield f"The parameters of {commit}."


def _results(metrics: Mapping[str, float]) -> str:
    shown = {name: metrics[f"test/{name}"] for name in SHOWN if f"test/{name}" in metrics}
    values = (f"{value:.2f}" if value >= 1 else f"{value:.5f}" for value in shown.values())
    columns = "|---" * len(shown)
    return f"| test/{' | test/'.join(shown)} |\n{columns}|\n| {' | '.join(values)} |"
