"""Runs that differ in their seed alone form one configuration; configurations are compared.

A configuration is given by the parameters that dvc.lock recorded, without those that change no
result. Code splits it only where it is known to matter: if one seed gave different results.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pipeline.commands.comparison.quantities import HIGHER, PAIRED, quantity
from pipeline.commands.comparison.runs import Run
from pipeline.commands.comparison.statistics import Array, paired
from pipeline.params import NOT_IN_RESULTS


@dataclass(frozen=True)
class Comparison:
    """Configurations by their labels, which name what differs from the baseline.

    runs: one row per run, the best configuration first: label, name, seed, run, counts.
    mean, spread: one row per label, one column per metric. The spread is the standard deviation
    over seeds, or the standard error over images of a single seed.
    differences: one row per label, one column per per-image metric; None without a difference.
    """

    runs: pd.DataFrame
    labels: list[str]  # the best first
    baseline: str
    leading: str  # the metric that ranks
    params: pd.DataFrame  # that differ, one row per label
    mean: pd.DataFrame
    spread: pd.DataFrame
    differences: pd.DataFrame

    def members(self, label: str) -> list[Run]:
        """Runs of a configuration that count, by seed."""
        return list(self.runs.query("label == @label and counts")["run"])


def compare(runs: Sequence[Run], baseline: str) -> Comparison:
    """Compare runs that have metrics. `baseline` is the name of a run."""
    frame = group(runs)
    base = frame.loc[frame["name"] == baseline, "configuration"].iloc[0]
    params = differing_params(frame)
    labels = label(frame, params, base, baseline)
    frame["label"] = frame["configuration"].map(labels)
    params.index = params.index.map(labels)
    mean, spread = summarize(frame[frame["counts"]])
    leading = leading_metric(frame, mean, baseline)
    ascending = quantity(leading).better != HIGHER
    order = mean[leading].sort_values(ascending=ascending, kind="stable").index
    frame = frame.set_index("label", drop=False).loc[order].reset_index(drop=True)
    differences = difference_table(frame[frame["counts"]], baseline)
    ranked = [table.loc[order] for table in (params, mean, spread, differences)]
    return Comparison(frame, list(order), baseline, leading, *ranked)


def group(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per run with its configuration, and whether it counts: one run per seed does."""
    frame = pd.DataFrame({"run": runs})
    frame["name"] = [run.name for run in runs]
    frame["seed"] = [run.params.get("seed", -1) for run in runs]
    ignored = dict.fromkeys(NOT_IN_RESULTS | {"seed"})
    params = pd.Series([_text({**run.params, **ignored}) for run in runs])
    code = pd.Series([_text(run.code) for run in runs])
    results = pd.Series([(run.metrics.get("neg_elbo"), run.metrics.get("nll")) for run in runs])
    both = [params, frame["seed"]]
    matters = code.groupby(both).transform("nunique").gt(1) & results.groupby(both).transform(
        "nunique"
    ).gt(1)
    frame["configuration"] = params + code.where(matters.groupby(params).transform("any"), "")
    frame["unpaired"] = [run.per_image.empty for run in runs]
    frame = frame.sort_values(["seed", "unpaired"], kind="stable")
    frame["counts"] = ~frame.duplicated(["configuration", "seed"])
    return frame


def differing_params(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the parameters with more than one value, one row per configuration.

    One that an older version did not have does not differ.
    """
    firsts = frame.drop_duplicates("configuration").set_index("configuration")["run"]
    table = pd.DataFrame([run.params for run in firsts], index=firsts.index, dtype=object)
    table = table.drop(columns=list(NOT_IN_RESULTS | {"seed"}), errors="ignore")
    return table.loc[:, table.nunique() > 1]


def label(frame: pd.DataFrame, params: pd.DataFrame, base: str, baseline: str) -> pd.Series:
    """Return a unique label per configuration: what differs from the baseline, or a run's name."""
    changed = params.where(params.notna() & (params != params.loc[base]))
    names = frame.drop_duplicates("configuration").set_index("configuration")["name"]
    labels = changed.apply(
        lambda row: ", ".join(f"{k}={v}" for k, v in row.dropna().items()), axis=1
    )
    labels = labels.reindex(names.index).fillna("")
    labels = labels.where(labels != "", names)
    labels[base] = baseline
    return labels.where(~labels.duplicated(keep=False), labels + " (" + names + ")")


def summarize(counted: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return mean and spread of every metric, one row per label."""
    metrics = pd.DataFrame([run.metrics for run in counted["run"]], index=counted["label"])
    errors = metrics.filter(regex="_se$")
    seeds = metrics.drop(columns=errors.columns).groupby(level=0)
    errors.columns = errors.columns.str.removesuffix("_se")
    return seeds.mean(), seeds.std().fillna(errors.groupby(level=0).mean())


def leading_metric(frame: pd.DataFrame, mean: pd.DataFrame, baseline: str) -> str:
    """Return the metric that ranks: values of different likelihoods are not comparable."""
    likelihoods = {run.params.get("likelihood") for run in frame["run"]} - {None}
    candidates = ["nll", "neg_elbo"] if len(likelihoods) < 2 else ["nll_binarized"]
    measured = mean.columns[mean.loc[baseline].notna() & (mean.count() > min(1, len(mean) - 1))]
    return str([*measured.intersection(candidates, sort=False), *measured][0])


def difference_table(counted: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return the paired differences to the baseline."""
    table = pd.DataFrame(None, index=counted["label"].unique(), columns=list(PAIRED), dtype=object)
    groups = counted.groupby("label")["run"].agg(list)
    first = groups[baseline][0]
    for column in PAIRED:
        theirs = per_image(groups[baseline], column, first)
        for name, runs in groups.drop(baseline).items():
            ours = per_image(runs, column, first)
            if len(ours) and len(theirs):
                table.at[name, column] = paired(ours, theirs)
    return table


def per_image(runs: Sequence[Run], column: str, base: Run) -> Array:
    """Return the values [seeds, images] of the runs that can be compared with `base`."""
    return np.array([run.per_image[column] for run in runs if comparable(column, run, base)])


def comparable(column: str, one: Run, other: Run) -> bool:
    """Whether per-image values are of the same images and of the same density."""
    keys = ["images", "binarization" if column == "nll_binarized" else "likelihood"]
    ours, theirs = (run.protocol if column in run.per_image else {} for run in (one, other))
    return "images" in ours and all(ours.get(key) == theirs.get(key) for key in keys)


def _text(values: object) -> str:
    return json.dumps(values, sort_keys=True, default=str)
