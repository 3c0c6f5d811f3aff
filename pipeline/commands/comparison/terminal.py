"""A comparison as lines for a terminal."""

from collections.abc import Sequence

from pipeline.commands.comparison.groups import Comparison, Group
from pipeline.commands.comparison.quantities import QUANTITIES
from pipeline.commands.comparison.wording import measured, said, shortened, shown


def table(comparison: Comparison, width: int = 118) -> list[str]:
    """The comparison as lines for a terminal, the best configuration first."""
    columns = ["nll", "neg_elbo"] if comparison.leading == "nll" or _any(comparison, "nll") else ["neg_elbo"]
    head = ["runs", "seeds", *(QUANTITIES[column].symbol for column in columns), f"against {comparison.baseline.label}"]
    rows = []
    for group in comparison.groups:
        values = [measured(group.summary(column), QUANTITIES[column]) for column in columns]
        rows.append([shortened(group.names, 2), str(len(group.runs)), *values, _against(comparison, group)])
    given = {
        key: [cut(shown(group.params.get(key)), 16) for group in comparison.groups] for key in comparison.differing
    }
    while True:
        params = (
            zip(*([key, *values] for key, values in given.items()), strict=True) if given else [()] * (len(rows) + 1)
        )
        lines = aligned([[row[0], *cells, *row[1:]] for row, cells in zip([head, *rows], params, strict=True)])
        if max(map(len, lines)) <= width or not given:
            return lines
        given.pop(max(given, key=lambda key: max(map(len, (key, *given[key])))))  # the page has them all


def _any(comparison: Comparison, name: str) -> bool:
    return any(group.summary(name) for group in comparison.groups)


def _against(comparison: Comparison, group: Group) -> str:
    if group is comparison.baseline:
        return "baseline"
    for column in dict.fromkeys((comparison.leading, "neg_elbo")):
        if gap := comparison.difference(group, column):
            words = said(gap, QUANTITIES[column])
            aside = [QUANTITIES[column].symbol] * (column != comparison.leading) + ["one seed"] * (gap.seeds is None)
            return f"{words.interval} nats: {words.verdict}" + (f" ({', '.join(aside)})" if aside else "")
    return "—"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines with columns of one width; those of numbers, all but the first and the last, to the right."""
    cells = [[printable(cut(cell, 40)) for cell in row[:-1]] + [printable(row[-1])] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if place in (0, last) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def cut(text: str, most: int) -> str:
    """As much of a text as has room."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable(text: str) -> str:
    """Text without what a terminal would obey; names and values come from outside."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
