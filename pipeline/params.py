"""params.yaml: strict, typed, frozen. Also the one YAML loader, for every YAML file of the project.

Nothing is coerced and nothing is ignored: a misspelled key is an error, never a silent default.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml.constructor import ConstructorError

from pipeline.errors import UserError
from pipeline.paths import PARAMS

# Parameters that describe no experiment: runs that differ in these alone are one configuration.
NOT_IN_RESULTS = frozenset({"device", "sample_every"})


# A parameter that is not at its default, and what it needs another one to be.
NEEDS: list[tuple[str, str, Sequence[object]]] = [
    ("prior_components", "prior", ("mixture", "vamp")),
    ("beta", "objective", ("elbo",)),
    ("warmup_epochs", "objective", ("elbo",)),
    ("free_bits", "objective", ("elbo",)),
    ("free_bits", "prior", ("normal",)),  # the KL of a mixture is no sum over dimensions
    ("sigma", "likelihood", ("gaussian",)),
    ("binarize", "likelihood", ("bernoulli",)),
    ("conditional", "prior", ("normal", "mixture")),  # the images of a VampPrior have no label
    ("patience", "val_size", range(1, 50_001)),
]


class Params(BaseModel):
    """Every parameter of the pipeline. params.yaml has a comment and the range of each.

    A parameter with a default was added after the first version. At its default it changes nothing,
    and model files do not mention it: results from before stay what they are.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    binarize: Literal["none", "dynamic", "fixed"] = "none"
    val_size: Annotated[int, Field(ge=0, le=50_000)]
    network: Literal["mlp", "conv"]
    likelihood: Literal["bernoulli", "continuous_bernoulli", "gaussian"]
    sigma: Literal["learned", "optimal"] | Annotated[float, Field(ge=0.001, le=10)] = "learned"
    z_dim: Annotated[int, Field(ge=1, le=1024)]
    h_dim: Annotated[int, Field(ge=1, le=8192)]
    h_layers: Annotated[int, Field(ge=1, le=8)]
    activation: Literal["relu", "tanh", "gelu", "silu"]
    conditional: bool = False
    prior: Literal["normal", "mixture", "vamp"] = "normal"
    prior_components: Annotated[int, Field(ge=1, le=10_000)] = 10
    objective: Literal["elbo", "iwae", "dreg"] = "elbo"
    num_samples: Annotated[int, Field(ge=1, le=1000)] = 1
    beta: Annotated[float, Field(ge=0, le=1000)] = 1.0
    warmup_epochs: Annotated[int, Field(ge=0, le=99_999)] = 0
    free_bits: Annotated[float, Field(ge=0, le=100)] = 0.0
    num_epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=1, le=60_000)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    patience: Annotated[int, Field(ge=0, le=100_000)] = 0
    precision: Literal["float32", "tf32", "bfloat16"]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?)$")]
    sample_every: Annotated[int, Field(ge=1, le=100_000)]
    eval_samples: Annotated[int, Field(ge=1, le=100_000)]
    eval_proposal_scale: Annotated[float, Field(ge=0.1, le=10)]


# Of the parameters that were added after the first version.
DEFAULTS = {
    key: field.default for key, field in Params.model_fields.items() if not field.is_required()
}


def load_params(path: Path = PARAMS) -> Params:
    """Read and check the whole file. Raises UserError about the key, or about the file."""
    return check_params(read_yaml(path), path.name)


def check_params(content: dict[str, Any], name: str) -> Params:
    """Check `content`, which is called `name`. Raises UserError about the key.

    It may be a parameter that another one leaves without meaning.
    """
    params = check_each(content, name)
    for key, other, values in NEEDS:
        value, given = getattr(params, key), getattr(params, other)
        if value != DEFAULTS[key] and given not in values:
            message = f"has no meaning with {other}: {given} (got {value!r})"
            raise UserError(f"{name}: {key}", message)
    if params.warmup_epochs >= params.num_epochs:
        message = f"must be less than num_epochs: {params.num_epochs} (got {params.warmup_epochs})"
        raise UserError(f"{name}: warmup_epochs", message)
    if params.sigma == "optimal" and params.objective != "elbo":
        message = f"optimal is the optimum of elbo only (objective: {params.objective})"
        raise UserError(f"{name}: sigma", message)
    return params


def check_each(content: dict[str, Any], name: str) -> Params:
    """Check every key, not whether they have a meaning together. Raises UserError about the key."""
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        # A misspelled key is both unknown and missing; the unknown key is the one to report.
        first = min(error.errors(), key=lambda detail: detail["type"] != "extra_forbidden")
        key = str(first["loc"][0])
        value = "" if first["type"] == "missing" else f" (got {content[key]!r:.60})"
        reasons = [detail["msg"] for detail in error.errors() if detail["loc"][0] == key]
        raise UserError(f"{name}: {key}", f"{'; or '.join(reasons)}{value}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping. Raises UserError about the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(path.name, f"cannot be read ({error})") from error
    return parse_yaml(text, path.name)


def parse_yaml(text: str, name: str) -> dict[str, Any]:
    """Parse YAML text that contains a mapping with string keys. Raises UserError about `name`."""
    try:
        content = yaml.load(text, _StrictLoader)  # noqa: S506 (a safe one)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(name, f"is not valid YAML ({error.problem}{line})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(name, "is not valid YAML") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(name, "must contain one `key: value` per line")
    return content


class _StrictLoader(yaml.CSafeLoader):
    """CSafeLoader with the scalars of YAML 1.2, as DVC reads them. A key given twice is an error.

    YAML 1.1 reads `1e-05`, as DVC writes `-S learning_rate=1e-5`, as a string, and `010` as 8.
    """

    # Without the rules of YAML 1.1; those of YAML 1.2 are added below.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (declared so by PyYAML)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[object] = []  # a list: a key may be unhashable
        for key, _ in node.value:
            if key.value in seen:
                problem = f"{key.value} is given twice"
                raise ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.append(key.value)
        return super().construct_mapping(node, deep)


_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?\d+",
    "float": r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
for name, pattern in _SCALARS.items():
    regexp = re.compile(f"^({pattern})$")
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", regexp, None)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
