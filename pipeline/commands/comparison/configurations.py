"""Runs that differ in their seed alone form one configuration; configurations are compared.

A configuration is given by the code and the parameters that dvc.lock recorded, without those that
change no result. Two versions of the code count as one if both were run with the same seed, and
gave the same results each time.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

import numpy as np
import pandas as pd

from pipeline.commands.comparison.quantities import HIGHER, PAIRED, QUANTITIES, quantity
from pipeline.commands.comparison.runs import Run
from pipeline.commands.comparison.statistics import Array, paired
from pipeline.params import NOT_IN_RESULTS

IGNORED = dict.fromkeys(NOT_IN_RESULTS | {"seed"})
# The parts of the protocol that decide what a column measures.
MEASURED = {"nll_binarized": ("binarization",)}


@dataclass(frozen=True)
class Comparison:
    """Configurations by their labels, which name what differs from the baseline.

    runs: one row per run, the best configuration first: label, name, run, seed, counts, conflict.
    params, mean, spread: one row per label, one column per parameter that differs, or per metric.
    The spread is the standard deviation over seeds; of a single seed, the standard error over
    images. differences: one column per per-image metric; None if there is no difference.
    """

    runs: pd.DataFrame
    labels: list[str]  # the best first
    baseline: str
    leading: str  # the metric that ranks
    params: pd.DataFrame
    mean: pd.DataFrame
    spread: pd.DataFrame
    differences: pd.DataFrame

    @property
    def counted(self) -> pd.DataFrame:
        """The runs that count: one per seed."""
        return self.runs[self.runs["counts"]]


def compare(runs: Sequence[Run], baseline: str) -> Comparison:
    """Compare runs that have metrics. `baseline` is the name of a run."""
    frame = group(runs)
    params = differing_params(frame)
    labels = label(frame, params, baseline)
    frame["label"] = frame["configuration"].map(labels)
    counted = frame[frame["counts"]]
    mean, spread = summarize(counted)
    leading = leading_metric(counted, mean, baseline)
    ascending = quantity(leading).better != HIGHER
    order = mean[leading].sort_values(ascending=ascending, kind="stable").index
    tables = [params.rename(index=labels), mean, spread, difference_table(counted, baseline)]
    ranked = frame.set_index("label", drop=False).loc[order].reset_index(drop=True)
    ordered = (table.loc[order] for table in tables)
    return Comparison(ranked, list(order), baseline, leading, *ordered)


def group(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row per run: its configuration, whether it counts, whether it is in conflict.

    One run per seed counts, if possible one with per-image values. A conflict: the run has other
    results than the one that counts.
    """
    frame = pd.DataFrame({"run": runs})
    frame["name"] = frame["run"].map(attrgetter("name"))
    frame["seed"] = frame["run"].map(lambda run: run.params.get("seed", -1))
    frame["params"] = frame["run"].map(lambda run: _text({**run.params, **IGNORED}))
    frame["code"] = frame["run"].map(lambda run: _text(run.code))
    frame["results"] = frame["run"].map(lambda run: _text([*map(run.metrics.get, PAIRED[:2])]))
    frame["configuration"] = frame["params"] + _version(frame)
    frame["unpaired"] = frame["run"].map(lambda run: run.per_image.empty)
    frame = frame.sort_values(["seed", "unpaired"], kind="stable")
    same = frame.groupby(["configuration", "seed"])
    frame["counts"] = same.cumcount() == 0
    frame["conflict"] = frame["results"] != same["results"].transform("first")
    return frame


def _version(frame: pd.DataFrame) -> pd.Series:
    """Return the code of each run; versions that gave the same results have one name."""
    params, version = frame["params"], frame["code"]
    for _ in range(version.nunique()):  # through a chain of versions, too
        for equal in (["params", "seed", "results"], ["params", "code"]):
            version = version.groupby([frame[name] for name in equal]).transform("min")
    results = frame["results"].groupby([params, version, frame["seed"]]).transform("nunique")
    is_unlike = (results > 1).groupby([params, version]).transform("any")
    return frame["code"].where(is_unlike, version)


def differing_params(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the parameters with more than one value, one row per configuration.

    One that an older version did not have does not differ.
    """
    firsts = frame.drop_duplicates("configuration")
    params = firsts["run"].map(attrgetter("params")).tolist()
    table = pd.DataFrame(params, index=firsts["configuration"], dtype=object)
    table = table.drop(columns=list(IGNORED), errors="ignore")
    return table.loc[:, table.nunique() > 1]


def label(frame: pd.DataFrame, params: pd.DataFrame, baseline: str) -> pd.Series:
    """Return a label per configuration: what differs from the baseline, or the name of a run."""
    names = frame.drop_duplicates("configuration").set_index("configuration")["name"]
    base = frame.set_index("name").at[baseline, "configuration"]
    labels = pd.Series("", index=params.index)
    for name, values in params.items():
        changed = values.notna() & (values != values[base])
        labels += (f", {name}=" + values.astype(str)).where(changed, "")
    labels = labels.str.removeprefix(", ")
    labels = labels.where(labels != "", names)
    labels[base] = baseline
    return labels.where(~labels.duplicated(keep=False), labels + " (" + names + ")")


def summarize(counted: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return mean and spread of every metric, one row per label, in the order of QUANTITIES."""
    rows = counted["run"].map(attrgetter("metrics")).tolist()
    metrics = pd.DataFrame(rows, index=counted["label"])
    errors = metrics.filter(regex="_se$")
    names = metrics.columns.difference(errors.columns)
    names = pd.Index(QUANTITIES).intersection(names, sort=False).union(names, sort=False)
    errors.columns = errors.columns.str.removesuffix("_se")
    seeds = metrics[names].groupby(level=0)
    return seeds.mean(), seeds.std().fillna(errors.groupby(level=0).mean())


def leading_metric(counted: pd.DataFrame, mean: pd.DataFrame, baseline: str) -> str:
    """Return the metric that ranks: densities of different measures are not comparable."""
    measures = {run.protocol.get("measure", run.params.get("likelihood")) for run in counted["run"]}
    candidates = ["nll", "neg_elbo"] if len(measures - {None}) < 2 else ["nll_binarized"]
    shared = mean.loc[:, mean.count() > min(1, len(mean) - 1)]
    measured = shared.loc[baseline].dropna().index
    return str(pd.Index(candidates).intersection(measured, sort=False).append(measured)[0])


def difference_table(counted: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Return the paired differences to the baseline: labels x per-image metrics."""
    groups = counted.groupby("label")["run"].agg(list)
    base = groups[baseline][0]
    columns = {name: groups.map(partial(per_image, column=name, base=base)) for name in PAIRED}
    values = pd.DataFrame(columns)
    return values.apply(lambda column: column.map(partial(paired, theirs=column[baseline])))


def per_image(runs: Sequence[Run], column: str, base: Run) -> Array:
    """Return the values [seeds, images] of the runs that can be compared with `base`.

    They have the same images and are of the same density; gray and binary images have the same
    binarization.
    """
    keys = MEASURED.get(column, ("images", "measure"))
    wanted = [base.protocol.get(key) for key in keys]
    alike = [run for run in runs if [run.protocol.get(key) for key in keys] == wanted]
    return np.array([run.per_image[column] for run in alike if column in run.per_image])


def _text(values: object) -> str:
    return json.dumps(values, sort_keys=True, default=str)
