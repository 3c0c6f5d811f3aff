"""A comparison in words and rows: what the terminal and the page say alike."""

from collections.abc import Sequence
from typing import NamedTuple

from pipeline.commands.comparison.groups import Comparison, Group
from pipeline.commands.comparison.quantities import QUANTITIES, Quantity, show
from pipeline.commands.comparison.statistics import Difference, Summary

ONE_SEED = "dvc exp run -n NAME -S seed=1"


class Said(NamedTuple):
    """A difference in words: the interval, what it means, and what the interval is made of."""

    interval: str
    verdict: str
    detail: str
    tone: str  # better | worse | ""


def measured(summary: Summary | None, quantity: Quantity) -> str:
    """`92.70 ± 0.12`, the spread between seeds where there are several, else the standard error over the images."""
    if summary is None:
        return "—"
    value = show(summary.mean, quantity)
    return value if summary.spread is None else f"{value} ± {summary.spread:.{quantity.digits}f}"


def kind(summary: Summary | None) -> str:
    """What the ± of `measured` is."""
    if summary is None or summary.spread is None:
        return ""
    return "s.e., images" if summary.sd is None else f"s.d., {summary.seeds} seeds"


def interval(difference: Difference) -> str:
    """`−0.42 ± 0.05`, with as many digits as the half width needs."""
    digits = 2 if difference.half >= 0.01 or difference.half == 0 else 3
    return f"{difference.value:+.{digits}f} ± {difference.half:.{digits}f}".replace("-", "−")


def said(difference: Difference, quantity: Quantity, seed_gap: float | None = None) -> Said:
    """A difference to the baseline. `seed_gap`: what two seeds of one configuration differ by, if that is known."""
    verdict = tone = quantity.verdict(difference.sign)
    if difference.seeds is not None:
        detail = f"images ± {difference.images:.2f}, seeds ± {difference.seeds:.2f}"
    else:
        detail = "images alone: one seed"
        if seed_gap is not None and difference.sign and abs(difference.value) <= seed_gap:
            detail, tone = f"images alone: one seed, and seeds differ by up to {seed_gap:.2f}", ""
    return Said(interval(difference), verdict, detail, tone if tone in ("better", "worse") else "")


def between(difference: Difference) -> str:
    """What a difference of two seeds of one configuration says."""
    if difference.sign == 0:
        return "covers zero: the test images explain it"
    return "these seeds differ by more than the test images explain"


def answer(comparison: Comparison) -> str:
    """What a person wants to know first, in one sentence."""
    quantity, base = QUANTITIES[comparison.leading], comparison.baseline
    ranked = [(group, summary) for group in comparison.groups if (summary := group.summary(comparison.leading))]
    if not ranked:
        return "Nothing has been measured on the test images yet."
    best, summary = ranked[0]
    first = f"by {quantity.symbol}: {title(best)}, {show(summary.mean, quantity)} nats"
    if len(ranked) == 1:
        return f"One configuration has results {first}."
    seed_gap = comparison.seed_gap(comparison.leading)
    if best is base:
        other, theirs = ranked[1]
        gap = comparison.difference(other, comparison.leading)
        how = _how(gap, quantity, "it", seed_gap) if gap else f"at {show(theirs.mean, quantity)} nats"
        return f"Best {first}, the baseline; next is {title(other)}, {how}."
    gap = comparison.difference(best, comparison.leading)
    if gap is None:
        return f"Best {first}; it cannot be paired with {base.label}."
    return f"{'Best' if gap.sign else 'Lowest'} {first}; {_how(gap, quantity, base.label, seed_gap)}."


def _how(gap: Difference, quantity: Quantity, base: str, seed_gap: float | None) -> str:
    """`0.42 ± 0.05 nats better than HEAD`."""
    if gap.sign == 0:
        return f"not told apart from {base} ({interval(gap)} nats)"
    unsure = gap.seeds is None and seed_gap is not None and abs(gap.value) <= seed_gap
    doubt = ", which another seed may undo" if unsure else ""
    return f"{interval(gap)[1:]} nats {quantity.verdict(gap.sign)} than {base}{doubt}"


def caveat(comparison: Comparison) -> str:
    """What the intervals leave out where a side has one seed; "" where none does."""
    gaps = [comparison.difference(group, comparison.leading) for group in comparison.groups]
    if not any(gap and gap.seeds is None for gap in gaps):
        return ""
    known = comparison.seed_gap(comparison.leading)
    other = (
        f"another seed may differ by as much: seeds of one configuration differ by up to {known:.2f} nats here"
        if known is not None
        else f"how much another seed would differ is not known; `{ONE_SEED}` makes one"
    )
    return f"Where a side has one seed the interval is over test images alone, and {other}."


def title(group: Group) -> str:
    """A group by what differs, and by the name of its run where that is another."""
    names = shortened(group.names)
    return group.label if group.label in (names, group.runs[0].name) else f"{group.label} ({names})"


def shortened(names: Sequence[str], most: int = 3) -> str:
    """The first names of many."""
    return ", ".join(names[:most]) + (f" +{len(names) - most}" if len(names) > most else "")


def shown(value: object) -> str:
    """A parameter's value on one line."""
    return "—" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
