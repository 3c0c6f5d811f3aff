"""A comparison as sentences, notes and pandas tables of text, for the terminal and the page."""

from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from pipeline.commands.comparison.configurations import Comparison
from pipeline.commands.comparison.quantities import QUANTITIES, Quantity, quantity
from pipeline.commands.comparison.runs import Run
from pipeline.commands.comparison.statistics import Difference

NOTHING = "—"
PROTOCOL = {
    "images": "evaluated on other images than {base}: no paired differences",
    "likelihood": "likelihood {ours}, {base} has {theirs}: only −log p(b) can be compared",
    "binarization": "another binarization than {base}: no paired difference of −log p(b)",
    "eval_samples": "−log p(x) with eval_samples {ours}, {base} with {theirs}: not equally tight",
    "eval_proposal_scale": "−log p(x) with eval_proposal_scale {ours}, {base} with {theirs}",
}


def answer(comparison: Comparison) -> str:
    """Return the first thing a reader wants to know, as one sentence."""
    best, rival = [*comparison.labels, "no other"][:2]
    base, leading = comparison.baseline, comparison.leading
    first = (
        f"Best by mean {quantity(leading).symbol}: {best}, {values(comparison).at[best, leading]}"
    )
    against = differences(comparison)[leading]
    if best == base:
        return f"{first}; next: {rival}, {against.get(rival, NOTHING)}."
    return f"{first}; against {base}: {against[best]}."


def caveat(comparison: Comparison) -> str:
    """Return what the intervals leave out; "" if all of them include seed variance."""
    texts = differences(comparison)[comparison.leading]
    if not texts.str.contains("one seed").any():
        return ""
    counted = comparison.runs[comparison.runs["counts"]]
    metric = pd.Series([run.metrics.get(comparison.leading) for run in counted["run"]])
    seeds = metric.groupby(counted["label"].array)
    known = (
        f"here, seeds of one configuration differ by up to {(seeds.max() - seeds.min()).max():.2f}"
    )
    advice = known if seeds.count().max() > 1 else "`dvc exp run -n NAME -S seed=1` adds a seed"
    return f"Intervals marked (one seed) do not include seed variance; {advice}."


def values(comparison: Comparison) -> pd.DataFrame:
    """Return every metric of every configuration: `92.70 ± 0.12`."""
    means, spreads = (
        table.apply(lambda column: column.map(quantity(str(column.name)).show))
        for table in (comparison.mean, comparison.spread.reindex_like(comparison.mean))
    )
    text = means.where(spreads == "nan", means + " ± " + spreads)
    return text.where(comparison.mean.notna(), NOTHING)


def differences(comparison: Comparison) -> pd.DataFrame:
    """Return every paired difference and what it means: `−0.42 ± 0.05 better`."""
    table = comparison.differences.apply(
        lambda column: column.map(lambda gap: describe(gap, quantity(str(column.name))))
    ).reindex(columns=list(dict.fromkeys([*comparison.differences, comparison.leading])))
    table = table.fillna(NOTHING)
    table.loc[comparison.baseline] = "baseline"
    return table


def describe(gap: Difference | None, shown: Quantity) -> str:
    """Return the interval, with digits enough for its half width, and the verdict."""
    if not isinstance(gap, Difference):
        return NOTHING
    digits = 2 if gap.half >= 0.01 else 4
    interval = f"{gap.value:+.{digits}f} ± {gap.half:.{digits}f}".replace("-", "−")
    marked = " (one seed)" if gap.seeds is None else ""
    return f"{interval} {shown.verdict(gap.sign)}{marked}"


def results(comparison: Comparison) -> pd.DataFrame:
    """Return the main table: one row per configuration, the best first."""
    columns = list(dict.fromkeys([comparison.leading, "nll", "neg_elbo"]))
    by_label = comparison.runs.groupby("label")
    table = by_label.agg(runs=("name", shortened), seeds=("counts", "sum")).loc[comparison.labels]
    measured, paired = values(comparison), differences(comparison)
    for name in measured.columns.intersection(columns, sort=False):
        symbol = quantity(name).symbol
        table[f"Δ {symbol}"] = paired.get(name, NOTHING)
        table[symbol] = measured[name]
    return table.join(comparison.params.fillna(NOTHING)).astype(str)


def metrics(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Return a table of all metrics for each section of the page."""
    table = values(comparison)
    names = [*(name for name in QUANTITIES if name in table), *table.columns.difference(QUANTITIES)]
    sections = pd.Series(names).groupby([quantity(name).section for name in names], sort=False)
    return {str(section): symbols(table[list(columns)]) for section, columns in sections}


def symbols(table: pd.DataFrame, prefix: str = "") -> pd.DataFrame:
    """Return the table with symbols in place of the names of metrics."""
    return table.rename(columns=lambda name: prefix + quantity(name).symbol)


def terminal(comparison: Comparison) -> str:
    """Return the main table in ASCII, without the parameters: the labels have them."""
    table = results(comparison).drop(columns=list(comparison.params))
    lead = f"Δ {quantity(comparison.leading).symbol}"
    against = table[lead]
    table = table.drop(columns=table.filter(like="Δ").columns)
    table[f"{lead[2:]} against {comparison.baseline}"] = against
    table = table.rename(index=lambda name: name[:40]).map(ascii_text)
    return table.rename(index=ascii_text, columns=ascii_text).to_string()


def ascii_text(text: str) -> str:
    """Return text for a terminal: names come from outside, and may contain escape sequences."""
    plain = text.replace("−", "-").replace("±", "+/-").replace("—", "-").replace("é", "e")
    return ascii(plain)[1:-1]


def shortened(names: Iterable[str]) -> str:
    """Return the first of many names."""
    first = list(names)
    return ", ".join(first[:3]) + f" +{len(first) - 3}" * (len(first) > 3)


def notes(comparison: Comparison, others: Sequence[Run]) -> list[tuple[str, str]]:
    """Return (runs, note): each note once. `others` are runs without results."""
    found = [(run.name, note) for run in others for note in [*run.notes, "has no results"][:1]]
    base = comparison.members(comparison.baseline)[0]
    for row in comparison.runs.itertuples():
        found += [(row.name, note) for note in (*row.run.notes, *_differences(row.run, base))]
    for _, rows in comparison.runs.groupby(["label", "seed"]):
        means = rows["run"].map(lambda run: run.metrics.get("neg_elbo"))
        text = f"same parameters and seed as {rows['name'].iloc[0]}, which counts; other results"
        found += [(name, text) for name in rows["name"][means != means.iloc[0]]]
    frame = pd.DataFrame(found, columns=["run", "note"])
    return [
        (shortened(names), str(note)) for note, names in frame.groupby("note", sort=False)["run"]
    ]


def _differences(run: Run, base: Run) -> Iterator[str]:
    """What differs from the baseline beside the parameters."""
    changed = sorted(dict(run.code.items() ^ base.code.items()))
    if changed:
        yield f"code differs from {base.name}: {shortened(changed)}"
    for key, text in PROTOCOL.items():
        ours, theirs = run.protocol.get(key), base.protocol.get(key)
        if {} not in (run.protocol, base.protocol) and ours != theirs:
            yield text.format(base=base.name, ours=ours, theirs=theirs)
    if run.classifier.get("classifier") != base.classifier.get("classifier"):
        yield f"another classifier than {base.name}: scores of samples cannot be compared"
