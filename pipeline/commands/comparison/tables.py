"""A comparison as sentences, notes and pandas tables of text, for the terminal and the page."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import pandas as pd

from pipeline.commands.comparison.configurations import Comparison
from pipeline.commands.comparison.quantities import quantity
from pipeline.commands.comparison.runs import Run
from pipeline.commands.comparison.statistics import Difference

NOTHING = "—"
ASCII = str.maketrans({"−": "-", "±": "+/-", "—": "-", "Δ": "difference of", "é": "e"})
REPEATED = "not counted: another run of the same parameters, code and seed has other results"
UNLIKE = {
    "code": "code differs from {base}: {changed}",
    "classifier": "another classifier than {base}: scores of samples cannot be compared",
    "images": "evaluated on other images than {base}: at most −log p(b) can be compared",
    "measure": "a density of {ours}, {base} of {theirs}: only −log p(b) can be compared",
    "binarization": "another binarization than {base}: no paired difference of −log p(b)",
    "eval_samples": "−log p(x) with eval_samples {ours}, {base} with {theirs}: not equally tight",
    "eval_proposal_scale": "−log p(x) with eval_proposal_scale {ours}, {base} with {theirs}",
}


def answer(comparison: Comparison) -> str:
    """Return the first thing a reader wants to know, as one sentence."""
    best, rival = [*comparison.labels, "no other configuration"][:2]
    base, leading = comparison.baseline, comparison.leading
    value = values(comparison)[leading][best]
    first = f"Best by mean {quantity(leading).symbol}: {best}, {value}"
    against = differences(comparison)[leading].replace(NOTHING, "no paired difference")
    if best == base:
        return f"{first}; next: {rival}, {against.get(rival, NOTHING)}."
    return f"{first}; against {base}: {against[best]}."


def caveat(comparison: Comparison) -> str:
    """Return what the intervals leave out; "" if all of them include seed variance."""
    if not differences(comparison)[comparison.leading].str.contains("one seed").any():
        return ""
    advice = "`dvc exp run -n NAME -S seed=1` adds a seed"
    return f"Intervals marked (one seed) do not include seed variance; {advice}."


def values(comparison: Comparison) -> pd.DataFrame:
    """Return every metric of every configuration: `92.70 ± 0.12`."""
    means, spreads = comparison.mean.apply(_show), comparison.spread.apply(_show)
    text = means.where(spreads == "nan", means + " ± " + spreads)
    return text.where(comparison.mean.notna(), NOTHING)


def differences(comparison: Comparison) -> pd.DataFrame:
    """Return every paired difference and what it means: `−0.42 ± 0.05 better`."""
    table = comparison.differences.apply(lambda gaps: gaps.map(partial(describe, name=gaps.name)))
    table[comparison.leading] = table.get(comparison.leading, NOTHING)
    table.loc[comparison.baseline] = "baseline"
    return table


def describe(gap: Difference | None, name: object) -> str:
    """Return the interval, with digits enough for its half width, and the verdict."""
    if not isinstance(gap, Difference):
        return NOTHING
    digits = 2 if gap.half >= 0.01 else 4
    interval = f"{gap.value:+.{digits}f} ± {gap.half:.{digits}f}".replace("-", "−")
    marked = " (one seed)" * (gap.seeds is None)
    return f"{interval} {quantity(name).verdict(gap.sign)}{marked}"


def _show(metric: pd.Series) -> pd.Series:
    return metric.map(quantity(metric.name).show)


def results(comparison: Comparison) -> pd.DataFrame:
    """Return the main table: one row per configuration, the best first."""
    measured, paired = values(comparison), differences(comparison)
    table = pd.DataFrame(index=comparison.labels)
    names = pd.Index([comparison.leading, "nll", "neg_elbo"]).unique()
    for name in names.intersection(measured.columns, sort=False):
        symbol = quantity(name).symbol
        table[f"Δ {symbol}"] = paired[name]
        table[symbol] = measured[name]
    by_label = comparison.runs.groupby("label")
    table = table.join(by_label.agg(seeds=("counts", "sum"), runs=("name", shortened)))
    return table.join(comparison.params.fillna(NOTHING)).astype(str)


def metrics(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Return a table of all metrics for each section of the page."""
    sections = values(comparison).T.groupby(lambda name: quantity(name).section, sort=False)
    return {str(section): symbols(table.T) for section, table in sections}


def symbols(table: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    """Return the table with symbols in place of the names of metrics."""
    return table.rename(columns=lambda name: prefix + quantity(name).symbol)


def terminal(comparison: Comparison) -> str:
    """Return the main table in ASCII, without the parameters: the labels have them."""
    table = results(comparison).drop(columns=comparison.params.columns)
    lead = table.filter(like="Δ").iloc[:, :1].add_suffix(f" to {comparison.baseline}")
    table = table.drop(columns=table.filter(like="Δ").columns).join(lead).map(ascii_text)
    table = table.rename(index=lambda name: ascii_text(name)[:56], columns=ascii_text)
    return str(table.rename_axis(None).to_string())


def ascii_text(text: str) -> str:
    """Return text for a terminal: names come from outside, and may contain escape sequences."""
    return ascii(text.translate(ASCII))[1:-1]


def shortened(names: Iterable[str]) -> str:
    """Return the first of many names."""
    first = list(names)
    return ", ".join(first[:3]) + f" and {len(first) - 3} more" * (len(first) > 3)


def notes(comparison: Comparison, runs: Sequence[Run]) -> dict[str, str]:
    """Return the names of the runs for each note, in the order of `runs`."""
    base = comparison.counted.set_index("label")["run"].loc[[comparison.baseline]].iloc[0]
    found = {run.name: [*run.notes, *_differences(run, base)] for run in runs}
    for name in comparison.runs[comparison.runs["conflict"]]["name"]:
        found[name].append(REPEATED)
    rows = pd.Series(found, dtype=object).explode().dropna().rename("note").reset_index()
    return dict(rows.groupby("note", sort=False)["index"].agg(shortened))


def _differences(run: Run, base: Run) -> Iterator[str]:
    """What differs from the baseline beside the parameters."""
    ours, theirs = (
        {**one.protocol, "code": one.code, "classifier": one.classifier.get("sha256")}
        for one in (run, base)
    )
    changed = shortened(sorted(dict(run.code.items() ^ base.code.items())))
    for key, text in UNLIKE.items():
        if ours.get(key) and theirs.get(key) and ours[key] != theirs[key]:
            yield text.format(base=base.name, ours=ours[key], theirs=theirs[key], changed=changed)
