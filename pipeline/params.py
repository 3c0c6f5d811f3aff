"""The only door to params.yaml: strict, typed, frozen.

Nothing is coerced and nothing is ignored: an unknown key is as much an error as a missing one, so a
misspelt `-S` can never train the defaults in silence. The file is read as YAML 1.2 by ruamel, the library
DVC writes it with: YAML 1.1 reads the `1e-05` that `-S learning_rate=1e-5` leaves behind as a string.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.errors import InputError


class Params(BaseModel):
    """Every knob of the pipeline. params.yaml says what each one does; the ranges here are the ranges there."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: Literal["mnist"]
    val_size: Annotated[int, Field(ge=0, le=50_000)]
    z_dim: Annotated[int, Field(ge=1, le=1024)]
    h_dim: Annotated[int, Field(ge=1, le=8192)]
    h_layers: Annotated[int, Field(ge=1, le=8)]
    activation: Literal["relu", "tanh", "gelu", "silu"]
    num_epochs: Annotated[int, Field(ge=1, le=100_000)]
    batch_size: Annotated[int, Field(ge=1, le=60_000)]
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    precision: Literal["float32", "bfloat16"]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:(0|[1-9][0-9]?))?)$")]
    sample_every: Annotated[int, Field(ge=1, le=100_000)]
    eval_samples: Annotated[int, Field(ge=1, le=100_000)]
    eval_proposal_scale: Annotated[float, Field(ge=0.1, le=10)]


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check the whole file. Raises InputError with one line that names the key."""
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path.name}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name}: is not UTF-8 text") from error
    except DuplicateKeyError as error:
        raise InputError(_duplicate(path, error)) from error
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name}: is not valid YAML{_where(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path.name}: must hold one `key: value` a line")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        # A misspelt key makes two errors, one unknown and one missing: the unknown one says what to do.
        details = sorted(error.errors(), key=lambda d: d["type"] not in ("extra_forbidden", "invalid_key"))
        raise InputError(f"{path.name}: {_sentence(details[0], content)}") from error


def read_values(text: str, name: str = "params.yaml") -> dict[str, Any]:
    """What a params.yaml of any version says, or a dvc.lock, as it stands. Raises InputError where it is no mapping."""
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: is not valid YAML{_where(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name}: must hold one `key: value` a line")
    return {str(key): value for key, value in content.items()}


def _sentence(detail: ErrorDetails, content: dict[Any, Any]) -> str:
    """One pydantic error as `key: what is wrong (got …)`, in the words of the file's reader."""
    key = _shown(detail["loc"][0]).strip("'")
    limits = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return f"{key}: is missing"
        case "extra_forbidden":
            near = difflib.get_close_matches(key, set(Params.model_fields) - set(content), n=1)
            return f"{key}: is not a known key" + (f" (did you mean {near[0]}?)" if near else "")
        case "invalid_key":
            return f"{key}: is not a known key"
        case "greater_than_equal":
            wanted = f"must be at least {_number(limits['ge'])}"
        case "greater_than":
            wanted = f"must be greater than {_number(limits['gt'])}"
        case "less_than_equal":
            wanted = f"must be at most {_number(limits['le'])}"
        case "int_type" | "int_from_float":
            wanted = "must be a whole number"
        case "float_type" | "finite_number":
            wanted = "must be a finite number"
        case "literal_error":
            wanted = f"must be one of {limits['expected'].replace(' or ', ', ').replace(chr(39), '')}"
        case "string_type" | "string_pattern_mismatch":
            wanted = "must be one of auto, cpu, cuda, cuda:N, mps"
        case _:
            wanted = detail["msg"]
    return f"{key}: {wanted} (got {_shown(detail['input'])})"


def _number(limit: float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _shown(value: Any) -> str:
    """A value on one line and short, in YAML's words where Python's differ."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _duplicate(path: Path, error: DuplicateKeyError) -> str:
    key = path.read_text(encoding="utf-8").splitlines()[error.problem_mark.line].split(":")[0].strip()
    return f"{path.name}: {key}: is given twice{_where(error)}"


def _where(error: Exception) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    return f" (line {mark.line + 1})" if mark else ""
