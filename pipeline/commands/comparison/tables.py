"""The page's tables: a row for each configuration, and for each cell what it is sorted by."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.commands.comparison.groups import Comparison, Group, paired_columns
from pipeline.commands.comparison.quantities import QUANTITIES, TABLES
from pipeline.commands.comparison.wording import between, interval, kind, measured, said, shortened, shown


class Cell(NamedTuple):
    """A table's cell: what it shows, what it is sorted by, a second line, and a tone (better, worse)."""

    text: str
    key: float | str | None = None
    detail: str = ""
    tone: str = ""


class Row(NamedTuple):
    """A table's row: the group that it is of, its header, and the cells."""

    group: Group
    header: Cell
    cells: Sequence[Cell]


class Table(NamedTuple):
    """A table; every column can be sorted by."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Row]


def header(group: Group) -> Cell:
    """A group by its label, with the names of its runs below."""
    names = shortened(group.names)
    return Cell(group.label, group.label, "" if names == group.label else names)


def value(group: Group, name: str) -> Cell:
    """A metric of a group."""
    summary = group.summary(name)
    return Cell(measured(summary, QUANTITIES[name]), summary.mean if summary else None, kind(summary))


def against(comparison: Comparison, group: Group, name: str) -> Cell:
    """A paired difference to the baseline."""
    if group is comparison.baseline:
        return Cell("baseline", 0.0)
    gap = comparison.difference(group, name)
    if gap is None:
        return Cell("—")
    words = said(gap, QUANTITIES[name], comparison.seed_gap(name))
    return Cell(f"{words.interval}: {words.verdict}", gap.value, words.detail, words.tone)


def results(comparison: Comparison) -> Table:
    """The main table: how sure the difference is, what came out, and what differs."""
    bounds = [name for name in ("nll", "neg_elbo") if any(group.summary(name) for group in comparison.groups)]
    rows = []
    for group in comparison.groups:
        params = [Cell(shown(given), _key(given)) for given in map(group.params.get, comparison.differing)]
        pairs = [cell for name in bounds for cell in (against(comparison, group, name), value(group, name))]
        rows.append(Row(group, header(group), [*pairs, Cell(str(len(group.runs)), len(group.runs)), *params]))
    symbols = [column for symbol in (QUANTITIES[name].symbol for name in bounds) for column in (f"Δ {symbol}", symbol)]
    caption = (
        f"In nats per test image, lower is better; Δ is the difference to {comparison.baseline.label}, image by image,"
        " with its 95 % interval. The ± of a value is the standard deviation over seeds (s.d.) or, of a single one, the"
        " standard error over the test images (s.e.)."
    )
    return Table(caption, ["configuration", *symbols, "seeds", *comparison.differing], rows)


def paired(comparison: Comparison) -> Table:
    """Every per-image quantity against the baseline."""
    columns = paired_columns(comparison)
    rows = [
        Row(group, header(group), [against(comparison, group, name) for name in columns])
        for group in comparison.groups
        if group is not comparison.baseline
    ]
    caption = f"Differences to {comparison.baseline.label}, image by image, in nats, with 95 % intervals"
    return Table(
        caption, ["configuration", *(f"Δ {QUANTITIES[name].symbol}" for name in columns)], rows if columns else []
    )


def seeds(comparison: Comparison) -> Table:
    """How the seeds of each configuration differ."""
    symbol = QUANTITIES[comparison.leading].symbol
    rows = [
        Row(
            group, Cell(f"seed {run.seed} − seed {first.seed}", group.label, group.label),
            [Cell(f"{interval(gap)} nats", gap.value), Cell(between(gap), gap.sign)],
        )
        for group in comparison.groups
        for run, first, gap in comparison.seeds(group)
    ]  # fmt: skip
    caption = f"Seeds of one configuration: differences of {symbol}, with 95 % intervals over the test images"
    return Table(caption, ["seeds", "difference", "what it says"], rows)


def metrics(comparison: Comparison) -> list[Table]:
    """Everything that was measured, in tables that fit on paper."""
    found = []
    for caption, names in TABLES.items():
        having = [name for name in names if any(group.summary(name) for group in comparison.groups)]
        rows = [Row(group, header(group), [value(group, name) for name in having]) for group in comparison.groups]
        if having:
            found.append(Table(caption, ["configuration", *(QUANTITIES[name].symbol for name in having)], rows))
    return found


def _key(given: object) -> float | str | None:
    return float(given) if isinstance(given, int | float) else None if given is None else str(given)
