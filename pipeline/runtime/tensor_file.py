"""The one format of all tensor files (dataset, model, classifier): safetensors with a JSON header.

Nothing is unpickled. Reading a header needs no PyTorch, which takes more than a second to import.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from pipeline.errors import NoResultsError, UserError, is_out_of_memory
from pipeline.runtime.files import write_output

if TYPE_CHECKING:
    from torch import Tensor

# One metadata key: the order of several differs between processes.
HEADER = "header"


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header; equal content gives equal bytes.

    Raises UserError if the file cannot be written.
    """
    from safetensors.torch import save  # noqa: PLC0415 (imports torch)

    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(on_cpu, metadata={HEADER: json.dumps(header, sort_keys=True, allow_nan=False)})
    write_output(path, content)


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """All tensors of the file, on the CPU. Raises UserError if it is not a tensor file."""
    with reading(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def read_header(path: Path) -> dict[str, Any]:
    """The header of the file. Raises UserError if it is not a tensor file of this project."""
    with reading(path), safe_open(path, framework="numpy") as file:
        return json.loads((file.metadata() or {})[HEADER])


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what is wrong with a tensor file, or missing in it, into a UserError about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NoResultsError(path, f"cannot be read ({reason}); run `dvc repro`") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        message = "is not the file of this project that belongs there; run `dvc repro`"
        raise UserError(path, message) from error
