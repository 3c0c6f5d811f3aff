"""What a reader of a comparison has to know: what is missing, what counts once, what was not measured alike."""

from collections.abc import Iterator

from pipeline.commands.comparison.groups import Comparison, Group, comparable


def notes(comparison: Comparison) -> list[tuple[str, str]]:
    """Of whom, and what: each said once, with the names of the runs or configurations that it is true of."""
    said: dict[str, list[str]] = {}
    runs = [run for group in comparison.groups for run in (*group.runs, *group.repeats)]
    for run in runs:
        for note in run.notes:
            said.setdefault(note, []).append(run.name)
    for group in comparison.groups:
        base = comparison.baseline
        for note in (*_repeated(group), *_code(group, base), *_protocol(group, base)):
            said.setdefault(note, []).append(group.label)
    everybody = [run.name for run in runs]
    return [
        ("all" if len(names) > 2 and names == everybody else ", ".join(names), note) for note, names in said.items()
    ]


def _repeated(group: Group) -> Iterator[str]:
    for run in group.repeats:
        first = next(other for other in group.runs if other.seed == run.seed)
        if run.metrics == first.metrics:
            yield f"{run.name} has the results of {first.name}, and counts once"
        else:
            yield (
                f"{run.name} has the parameters, seed and code of {first.name}, and other results (another machine,"
                f" other versions?): {first.name} counts"
            )


def _code(group: Group, base: Group) -> Iterator[str]:
    ours, theirs = group.runs[0].code, base.runs[0].code
    changed = sorted(path for path in {*ours, *theirs} if ours.get(path) != theirs.get(path))
    if ours and theirs and changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        yield f"ran other code than {base.label}: {', '.join(changed[:3])}{more}"


def _protocol(group: Group, base: Group) -> Iterator[str]:
    """Where values beside one another were not measured in the same way."""
    for one in group.runs[1:]:
        for key in ("images", "binarization"):
            if one.protocol and group.runs[0].protocol and one.protocol.get(key) != group.runs[0].protocol.get(key):
                yield f"its seeds were measured on other {key}: those that differ from the first are not paired"
    ours, theirs = group.runs[0].protocol, base.runs[0].protocol
    if ours and theirs:
        if not comparable("nll", ours, theirs):
            yield f"was measured on other images than {base.label}: no paired differences"
        elif not comparable("nll_binarized", ours, theirs):
            yield f"was measured with another binarization than {base.label}: no paired difference of −log p(b)"
        for key, what in (("eval_samples", "draws of z an image"), ("eval_proposal_scale", "times the width of q")):
            if ours.get(key) != theirs.get(key):
                yield (
                    f"−log p(x) is from {ours.get(key)} {what}, of {base.label} from {theirs.get(key)}: these are"
                    " bounds of different tightness"
                )
    judges = [run.judge.get("sha256") for run in (group.runs[0], base.runs[0])]
    if all(judges) and judges[0] != judges[1]:
        yield f"FD, precision, recall, density and coverage are of another judge than {base.label}'s: not comparable"
