"""Work on a CUDA device as one graph: recorded once, then launched as a whole.

A step of this model is some fifty small kernels; launched one by one by Python they take longer to launch than to run.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.model.objective import ElboTerms

Work = Callable[[Tensor, Tensor], ElboTerms]
Recorded = tuple[
    torch.cuda.CUDAGraph, tuple[Tensor, ...], ElboTerms
]  # with where it reads and writes


class Graphs:
    """`work` on two tensors [N, …], from the first call on by a graph of its own for every N.

    `state` is everything that `work` changes besides. It always does so by a graph: a training that is interrupted and
    goes on launches the same kernels as one that is not, and leaves the same bits.
    """

    def __init__(self, work: Work, state: Sequence[Tensor]) -> None:
        self.work, self.state = work, state
        self._graphs: dict[int, Recorded] = {}

    def __call__(self, first: Tensor, second: Tensor) -> ElboTerms:
        """What `work` returns, as tensors of the caller's own."""
        if len(first) not in self._graphs:
            self._graphs[len(first)] = self._record(first.clone(), second.clone())
        graph, inputs, outputs = self._graphs[len(first)]
        for place, tensor in zip(inputs, (first, second), strict=True):
            place.copy_(tensor)
        graph.replay()
        return ElboTerms(*(tensor.clone() for tensor in outputs))

    def _record(self, *inputs: Tensor) -> Recorded:
        # Once without a graph, and undone: libraries set themselves up at their first use, which cannot be recorded.
        before = [tensor.clone() for tensor in self.state]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            self.work(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self.work(*inputs)
        for tensor, value in zip(self.state, before, strict=True):
            tensor.copy_(value)
        return graph, inputs, outputs
