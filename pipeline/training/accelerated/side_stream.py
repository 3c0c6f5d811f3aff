"""Work beside the main stream of a CUDA device: small kernels that do not fill it run together."""

from collections.abc import Callable

import torch
from torch import Tensor


class SideStream:
    """Runs work whose result is not needed before `join`; on other devices it runs at once."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # Memory that is freed goes to the next tensor of the main stream, which does not wait.
        self._in_use: list[Tensor] = []

    def __call__(self, work: Callable[..., None], *tensors: Tensor) -> None:
        """Run work(*tensors) after all that is on the main stream so far."""
        if self._stream is None:
            work(*tensors)
            return
        self._in_use += tensors
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work(*tensors)

    def join(self) -> None:
        """Have the main stream wait for the work."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
            self._in_use.clear()
