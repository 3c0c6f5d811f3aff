"""What a sweep varies, as typed: `h_dim=200,400` (values) or `z_dim=2..64:log` (a range)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from math import prod
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from pipeline.errors import UserError
from pipeline.params import NOT_IN_RESULTS, Params, check_each, check_params, parse_yaml

Space = dict[str, BaseDistribution]

RANGE = re.compile(r"(?P<low>[^,]*[^,.])\.\.(?P<high>[^,.:][^,:]*)(?P<log>:log)?")
MOST = 10_000  # trials of a grid
# One study is about one dataset, whose classifier all its trials share, measured in one way.
MEASURE = ("dataset", "val_size", "binarize", "likelihood", "eval_samples", "eval_proposal_scale")


def parse(words: Sequence[str], base: Params) -> Space:
    """The distribution of each parameter. Raises UserError about the first that is not valid."""
    space: Space = {}
    for word in words:
        key, _, text = word.partition("=")
        if not (key and all(text.split(","))):
            message = "is not KEY=VALUE,VALUE or KEY=LOW..HIGH[:log], without spaces"
            raise UserError(repr(word), message)
        if key not in Params.model_fields:
            raise UserError(repr(key), "is not a parameter of params.yaml")
        if key in MEASURE:
            message = "must be the same in all trials; edit params.yaml, `dvc repro`, and commit"
            raise UserError(f"sweep: {key}", message)
        if key in NOT_IN_RESULTS:
            raise UserError(f"sweep: {key}", "changes no result; set it in params.yaml")
        if key in space:
            raise UserError(f"sweep: {key}", "is given twice")
        match = RANGE.fullmatch(text)
        space[key] = _range(key, match, base) if match else _values(key, text, base)
    return space


def grid(space: Space, base: Params) -> Iterator[dict[str, Any]]:
    """Every combination of the values, each checked. Raises UserError about a range."""
    for key, values in space.items():
        if not isinstance(values, CategoricalDistribution):
            raise UserError(f"sweep: {key}", "is a range; set --trials N for a search")
    if (count := prod(len(ends(each)) for each in space.values())) > MOST:
        raise UserError("sweep", f"{count} combinations are too many; search with --trials N")
    for params in corners(space):
        checked(base, params)
        yield params


def require_meaning(space: Space, base: Params) -> None:
    """Raise UserError if no combination has a meaning, as far as values and ends tell."""
    errors = []
    for params in islice(corners(space), MOST):
        try:
            checked(base, params)
        except UserError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def corners(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of the values and of the ends of the ranges."""
    for chosen in product(*map(ends, space.values())):
        yield dict(zip(space, chosen, strict=True))


def ends(values: BaseDistribution) -> Sequence[Any]:
    """The values, or both ends of a range."""
    if isinstance(values, CategoricalDistribution):
        return values.choices
    return values.low, values.high  # type: ignore[attr-defined]


def checked(base: Params, changes: Mapping[str, object]) -> Params:
    """The parameters with changes. Raises UserError about one that is not valid."""
    return check_params(base.model_dump() | dict(changes), "sweep")


def suggest(trial: Trial, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The parameters of a trial."""
    return {key: trial._suggest(key, each) for key, each in space.items()}


def _values(key: str, text: str, base: Params) -> BaseDistribution:
    values = [_parsed(key, word, base) for word in text.split(",")]
    if len(set(values)) < len(values):
        raise UserError(f"sweep: {key}", f"has the same value twice (got {text})")
    return CategoricalDistribution(values)


def _range(key: str, match: re.Match[str], base: Params) -> BaseDistribution:
    low, high = (_parsed(key, match[end], base) for end in ("low", "high"))
    if isinstance(low, bool) or low == high:
        raise UserError(f"sweep: {key}", f"is no range of numbers (got {match[0]})")
    kind = IntDistribution if isinstance(getattr(base, key), int) else FloatDistribution
    try:
        return kind(low, high, log=match["log"] is not None)
    except (TypeError, ValueError) as error:
        raise UserError(f"sweep: {key}", f"is no range ({error})") from error


def _parsed(key: str, word: str, base: Params) -> Any:
    """By itself: with what else varies it may have a meaning although it has none with `base`."""
    value = parse_yaml(f"value: {word}", f"sweep: {key}: {word!r}")["value"]
    check_each(base.model_dump() | {key: value}, "sweep")
    return value
