"""What describes a run to a person: its name, tags, and a note in Markdown."""

import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.params import Params
from pipeline.runtime.git import Source


def name_of(source: Source, params: Params) -> str:
    """The name of a run: that of the DVC experiment, or what its parameters say."""
    if source.experiment:
        return source.experiment
    network = f"z{params.z_dim}-h{params.h_dim}x{params.h_layers}-{params.activation}"
    return f"{network}-lr{params.learning_rate:g}-e{params.num_epochs}-s{params.seed}"


def tags_of(fingerprint: str, provenance: Mapping[str, Any], source: Source) -> dict[str, str]:
    """Where the code of an execution is in git and DVC, and what it was executed with."""
    tags = {
        "fingerprint": fingerprint,
        "device": provenance["device"],
        **{f"version.{name}": number for name, number in provenance["versions"].items()},
        "mlflow.user": os.environ.get("USER", "unknown"),
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
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        if match := re.search(r"^model name\s*: (.+)$", text, re.MULTILINE):
            return match[1]
    return platform.processor() or platform.machine()


def restore(source: Source) -> str:
    """The literal command that restores the files of an execution.

    Not `dvc exp apply`: DVC may use the name of an experiment again, on this or another baseline.
    """
    if not source.baseline:
        return "# not in git: these files cannot be restored"
    # Not `dvc checkout`: the commit's dvc.lock may be older than these files.
    apply = "git apply git.diff && " if source.diff else ""
    return f"git checkout {source.baseline[:10]} && {apply}dvc repro"


def note(source: Source) -> str:
    """The note: how to restore the files, and what differs from the baseline commit.

    MLflow's page shows the first lines of a note.
    """
    # git quotes names that are not ASCII.
    files = re.findall(r'^diff --git .* "?b/(.+?)"?$', source.diff, re.MULTILINE)
    changed = ", ".join(sorted({*files, *source.untracked})) or "none"
    parts = [f"Restore these files:\n\n    {restore(source)}"]
    parts.append(f"Changes to commit `{source.baseline[:10]}` (see `git.diff`): {changed}.")
    _, *diffs = re.split(r"^diff --git ", f"\n{source.diff}", flags=re.MULTILINE)
    params = "".join(diff for diff in diffs if re.match(r'"?a/(.*/)?params\.yaml"? ', diff))
    if lines := re.findall(r"^[-+]\w.*$", params, re.MULTILINE):
        parts.append("\n".join(["```diff", *lines, "```"]))
    if source.untracked:
        parts.append(f"Not in git, so not restored: {', '.join(source.untracked)}.")
    return "\n\n".join(parts)
