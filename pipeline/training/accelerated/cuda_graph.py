"""Steps on a CUDA device as one graph: recorded once, then launched as a whole.

A step of the default model is some thirty small kernels. Launched one by one from Python, they take
longer to launch than to run.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.model.objective import ElboTerms
from pipeline.training.optimizer import Optimizer

Steps = Callable[..., ElboTerms]
# A graph with the tensors that it reads and those that it writes.
Recording = tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], ElboTerms]


class Graphs:
    """`steps`, recorded as a graph at the first call for each number of images.

    steps: maps tensors [N, ...] to terms, and updates the optimizer, one batch after the other.
    Raises UserError if they read a value back from the GPU, which a graph cannot.

    Every call launches a graph, the first one too: a resumed training launches the same kernels.
    """

    def __init__(self, steps: Steps, optimizer: Optimizer, batch_size: int) -> None:
        self._steps = steps
        self._optimizer = optimizer
        self._batch_size = batch_size
        self._recordings: dict[int, Recording] = {}

    def __call__(self, *inputs: Tensor) -> ElboTerms:
        """The terms, in tensors of the caller's own."""
        size = len(inputs[0])
        if size not in self._recordings:
            self._recordings[size] = self._record(tuple(tensor.clone() for tensor in inputs))
        graph, places, terms = self._recordings[size]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return ElboTerms(*(term.clone() for term in terms))

    def _record(self, inputs: tuple[Tensor, ...]) -> Recording:
        before = {name: tensor.clone() for name, tensor in self._optimizer.state().items()}
        rng_state = torch.cuda.get_rng_state()  # for layers that draw themselves, such as dropout
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Libraries set themselves up at the first batch of a size, which cannot be recorded.
            count = self._batch_size + len(inputs[0]) % self._batch_size
            self._steps(*(tensor[:count] for tensor in inputs))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                terms = self._steps(*inputs)
        except RuntimeError as error:
            if "capture" not in str(error):
                raise
            advice = f"without {Path(__file__).name} there are no graphs"
            message = f"a step may not read values back from the GPU, as .item() does; {advice}"
            raise UserError("training", message) from error
        torch.cuda.current_stream().wait_stream(stream)
        self._optimizer.restore(before)
        torch.cuda.set_rng_state(rng_state)
        return graph, inputs, terms
