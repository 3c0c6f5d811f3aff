"""Runs that differ in their seed alone are one configuration; configurations are compared with a baseline.

Two runs are of one configuration if `train` and `evaluate` ran the same code as well: pooled with other code, a
change of the code would count as a change of the seed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from pipeline.commands.comparison.quantities import PAIRED
from pipeline.commands.comparison.runs import Run
from pipeline.commands.comparison.statistics import Array, Difference, Summary, between_seeds, largest_gap, paired, summarize


@dataclass(eq=False)
class Group:
    """A configuration: one run for each seed, first seed first, and the runs that repeat one of them."""

    runs: list[Run]
    repeats: list[Run] = field(default_factory=list)
    label: str = ""  # what differs from the baseline

    @property
    def params(self) -> Mapping[str, object]:
        """All but the seed."""
        return {key: value for key, value in self.runs[0].params.items() if key != "seed"}

    @property
    def names(self) -> list[str]:
        """Of all its runs."""
        return [run.name for run in (*self.runs, *self.repeats)]

    @property
    def has_results(self) -> bool:
        """Whether it was measured on the test images."""
        return any(run.metrics for run in self.runs)

    def summary(self, name: str) -> Summary | None:
        """A metric over the seeds that have it."""
        having = [run.metrics for run in self.runs if name in run.metrics]
        errors = [metrics.get(f"{name}_se") for metrics in having]
        return summarize([metrics[name] for metrics in having], errors) if having else None

    def values(self, column: str) -> tuple[Array, Mapping[str, object]] | None:
        """Per-image values [seeds, images] of the seeds that have them, measured as the first of those was."""
        having = [run for run in self.runs if column in run.per_image]
        alike = [run for run in having if comparable(column, having[0].protocol, run.protocol)]
        alike = [run for run in alike if len(run.per_image[column]) == len(having[0].per_image[column])]
        return (np.stack([run.per_image[column] for run in alike]), having[0].protocol) if alike else None


def comparable(column: str, one: Mapping[str, object], other: Mapping[str, object]) -> bool:
    """Whether per-image values are of the same images, in the same order, and of the same binarization of them."""
    keys = ("images", "binarization") if column == "nll_binarized" else ("images",)
    return all(one.get(key) is not None and one.get(key) == other.get(key) for key in keys)


@dataclass(frozen=True)
class Comparison:
    """Configurations, the best one first. `leading` is the metric that says which is."""

    groups: Sequence[Group]
    baseline: Group
    leading: str
    differing: Sequence[str]  # parameters

    def difference(self, group: Group, column: str) -> Difference | None:
        """Of a group to the baseline, image by image; None where they cannot be paired."""
        ours, theirs = group.values(column), self.baseline.values(column)
        if group is self.baseline or not ours or not theirs or not comparable(column, ours[1], theirs[1]):
            return None
        return paired(ours[0], theirs[0]) if ours[0].shape[1] == theirs[0].shape[1] else None

    def seeds(self, group: Group) -> list[tuple[Run, Run, Difference]]:
        """How the seeds of a group differ from its first, in the leading metric."""
        having = [run for run in group.runs if self.leading in run.per_image]
        values = group.values(self.leading)
        if not values or len(values[0]) != len(having):
            return []
        gaps = between_seeds(values[0])
        return [(run, having[0], gap) for run, gap in zip(having[1:], gaps, strict=True)]

    def seed_gap(self, name: str) -> float | None:
        """The largest difference that two seeds of one configuration show here; None where none has two."""
        return largest_gap([[run.metrics[name] for run in group.runs if name in run.metrics] for group in self.groups])


def compare(runs: Sequence[Run], baseline: str) -> Comparison:
    """Form groups; `baseline` is the name of a run. What cannot be paired is in the notes."""
    groups = form_groups(runs)
    base = next(group for group in groups if baseline in group.names)
    measured = [group for group in groups if group.has_results]
    likelihoods = [group for group in measured if group.summary("nll")]
    leading = "nll" if base in likelihoods and len(likelihoods) >= min(2, len(measured)) else "neg_elbo"
    differing = differing_keys(groups)
    label(groups, base, baseline, differing)

    def place(group: Group) -> tuple[bool, float]:
        summary = group.summary(leading)
        return summary is None, summary.mean if summary else 0.0

    return Comparison(sorted(groups, key=place), base, leading, differing)


def form_groups(runs: Iterable[Run]) -> list[Group]:
    """Runs of the same parameters, seed aside, and of the same code, in the order in which they came."""
    found: dict[str, Group] = {}
    for run in runs:
        params = {key: value for key, value in run.params.items() if key != "seed"}
        key = json.dumps([params, dict(run.code)], sort_keys=True, default=str)
        group = found.setdefault(key, Group([]))
        seeds = [other.seed for other in group.runs]
        if run.seed not in seeds:
            group.runs.append(run)
        elif run.per_image and not group.runs[(place := seeds.index(run.seed))].per_image:
            group.repeats.append(group.runs[place])  # what can be paired counts
            group.runs[place] = run
        else:
            group.repeats.append(run)
    for group in found.values():
        group.runs.sort(key=lambda run: (isinstance(run.seed, str), str(run.seed).zfill(10)))
    return list(found.values())


def differing_keys(groups: Sequence[Group]) -> list[str]:
    """The parameters that differ between groups, in the order of params.yaml; the seed is none of them.

    One that an older version did not have does not differ.
    """
    keys = {key: None for group in groups for key in group.params}
    return [key for key in keys if len({repr(group.params[key]) for group in groups if key in group.params}) > 1]


def label(groups: Sequence[Group], base: Group, baseline: str, differing: Sequence[str]) -> None:
    """Name each group by what differs from the baseline, and by a run where that says nothing, or not enough."""
    base.label = baseline
    for group in groups:
        if group is not base:
            changed = [
                key for key in differing if group.params.get(key) != base.params.get(key) and key in group.params
            ]
            group.label = ", ".join(f"{key}={group.params[key]}" for key in changed) or group.runs[0].name
    for one, other in combinations(groups, 2):
        if one.label == other.label:
            other.label = f"{other.label} ({other.runs[0].name})"


def paired_columns(comparison: Comparison) -> list[str]:
    """The per-image columns that at least one group can be compared in."""
    return [column for column in PAIRED if any(comparison.difference(group, column) for group in comparison.groups)]
