"""What describes a run to a person: its name, tags, and a note in Markdown."""

import platform
import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.params import Params
from pipeline.runtime.git import Source

SHOWN = ("nll", "neg_elbo", "recon", "kl", "active_units", "frechet_distance")


def short_name(params: Params) -> str:
    """The name of a run without a DVC experiment."""
    return (
        f"z{params.z_dim}-h{params.h_dim}x{params.h_layers}-{params.activation}"
        f"-lr{params.learning_rate:g}-e{params.num_epochs}-s{params.seed}"
    )


def tags_of(fingerprint: str, provenance: Mapping[str, Any], source: Source) -> dict[str, str]:
    """Where the code of an execution is in git and DVC, and what it was executed with."""
    tags = {
        "fingerprint": fingerprint,
        "device": provenance["device"],
        **{f"version.{name}": number for name, number in provenance["versions"].items()},
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc exp run" if source.experiment else "dvc repro",
        "mlflow.source.git.commit": source.baseline,
        "git.dirty": str(source.dirty).lower(),
        "dvc.restore": restore(source),
    }
    if source.experiment:
        tags |= {"dvc.exp_name": source.experiment, "dvc.baseline": source.baseline}
    return tags


def cpu() -> str:
    """The model of this machine's CPU: equal bytes are promised on the same one."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def restore(source: Source) -> str:
    """The literal command that restores the files of an execution."""
    if source.experiment:
        return f"dvc exp apply {shlex.quote(source.experiment)}"
    if not source.baseline:
        return "dvc repro"
    # Not `dvc checkout`: the commit's dvc.lock may be older than these files.
    apply = "git apply git.diff && " if source.dirty else ""
    return f"git checkout {source.baseline[:10]} && {apply}dvc repro"


def note(
    params: Params,
    metrics: Mapping[str, float],
    source: Source,
    baseline: Mapping[str, object] | None,
) -> str:
    """The note: changes against the parameters of the baseline commit, results, how to restore."""
    parts = [_results(metrics), f"Restore these files:\n\n    {restore(source)}"]
    if source.dirty and not source.experiment:
        parts.append("`git.diff` is under Artifacts.")
    if files := _changed_files(source):
        parts.insert(0, f"Changed against {_commit(source)}: {', '.join(files)}.")
    if baseline is not None:
        parts.insert(0, _changed_params(params.model_dump(), baseline, _commit(source)))
    return "\n\n".join(parts)


def same_results(experiment: str) -> str:
    """The paragraph for an experiment that DVC restored from its run-cache."""
    return f"The same results, from DVC's run-cache:\n\n    dvc exp apply {shlex.quote(experiment)}"


def _commit(source: Source) -> str:
    return f"commit `{source.baseline[:10]}`"


def _changed_files(source: Source) -> list[str]:
    lines = [line for line in source.diff.splitlines() if line.startswith("diff --git ")]
    names = sorted({line.split(" b/")[-1] for line in lines} - {"params.yaml"})
    return [*(f"`{name}`" for name in names), *(f"`{name}` (not in git)" for name in source.untracked)]


def _changed_params(
    params: Mapping[str, object], baseline: Mapping[str, object], commit: str
) -> str:
    rows = [
        f"| `{key}` | {value} | {baseline.get(key, '(none)')} |"
        for key, value in params.items()
        if baseline.get(key) != value
    ]
    if not rows:
        return f"The parameters of {commit}."
    return "\n".join([f"| parameter | this run | {commit} |", "|---|---|---|", *rows])


def _results(metrics: Mapping[str, float]) -> str:
    names = [f"test/{name}" for name in SHOWN if f"test/{name}" in metrics]
    header = f"| {' | '.join(names)} |\n{'|---' * len(names)}|\n"
    return header + f"| {' | '.join(f'{metrics[name]:.5g}' for name in names)} |"
