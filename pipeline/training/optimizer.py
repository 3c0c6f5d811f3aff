"""Adam (Kingma & Ba 2015) on float32 weights, also if the matrix products are in bfloat16.

Weight decay is decoupled from the gradient: AdamW (Loshchilov & Hutter 2019).
"""

import copy
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.model.vae import VAE

# Of the weights in matrix products. With tf32 a GPU rounds the factors itself.
PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
# Of the learning rate, by the share of the training that is done, in [0, 1). The rate of an epoch
# depends on its number alone, so a resumed training has the same.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    # From 1 to 0 along half a cosine (Loshchilov & Hutter 2017), without restarts.
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    # Multiplied by 10^(-1/5) after 40 % and after 70 %. With 500 epochs these are the steps with
    # which pythae reproduces -log p(x) of binarized MNIST.
    "step": lambda done: math.pow(10, -bisect_right((0.4, 0.7), done) / 5),
}

Pieces = Sequence[Tensor]  # of one tensor, in its order


class Optimizer:
    """Updates the weights of `model` with the gradients of `working`.

    precision: of matrix products, a key of PRECISIONS. Raises UserError for tf32 without CUDA.
    working: in float32 the model itself, in bfloat16 a copy of it that follows each update, with
    the same likelihood.
    learning_rate: multiplied by the factor of `lr_schedule` for each of `num_epochs` epochs.
    """

    def __init__(
        self, model: VAE, learning_rate: float, precision: str = "float32", *,
        lr_schedule: str = "constant", num_epochs: int = 1, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        self.model = model
        if precision == "tf32" and model.device.type != "cuda":
            raise UserError("params.yaml: precision", "tf32 needs a CUDA device")
        self.precision = precision
        dtype = PRECISIONS[precision]
        self.working = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        # Decoder outputs are float32 again, and a running average would stand still in bfloat16.
        self.working.likelihood = model.likelihood
        self.lr_schedule = lr_schedule
        self._num_epochs = num_epochs
        self._weight_decay = weight_decay
        self._learning_rate = learning_rate
        self._rate: float | Tensor = learning_rate
        if lr_schedule != "constant":
            # A graph reads a tensor at every launch, as float32; a number stays as it was recorded.
            dtype = torch.float64 if model.device.type == "cpu" else torch.float32
            self._rate = torch.tensor(learning_rate, dtype=dtype, device=model.device)
        weights = dict(model.named_parameters())
        self._averages = {f"exp_avg.{name}": torch.zeros_like(weights[name]) for name in weights}
        self._squares = {f"exp_avg_sq.{name}": torch.zeros_like(weights[name]) for name in weights}
        self._step = torch.zeros((), device=model.device)
        self._piece = piece_size(list(weights.values())) if model.device.type == "cuda" else None
        self._rows = self._split_state()

    def begin_epoch(self, epoch: int) -> float:
        """Use the learning rate of this epoch, the first being 1, and return it."""
        done = (epoch - 1) / self._num_epochs
        rate = self._learning_rate * SCHEDULES[self.lr_schedule](done)
        if isinstance(self._rate, Tensor):
            self._rate.fill_(rate)
        return rate

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights."""
        if self.working is self.model:
            self._update()
            return
        weights, copies = tuple(self.model.parameters()), tuple(self.working.parameters())
        pairs = zip(weights, copies, strict=True)
        widened = [(weight, copy.grad.float()) for weight, copy in pairs if copy.grad is not None]
        for weight, gradient in widened:  # the others are there already, or have none
            weight.grad = gradient
        self._update()
        for weight, _ in widened:
            weight.grad = None
        torch._foreach_copy_(copies, weights)
        buffers = zip(self.model.buffers(), self.working.buffers(), strict=True)
        for buffer, working_buffer in buffers:  # statistics of normalization layers
            buffer.copy_(working_buffer)

    @torch.no_grad()
    def _split_state(self) -> list[tuple[nn.Parameter, list[Pieces]]]:
        """Each weight with the pieces of itself and its moments.

        Once: on a GPU, splitting takes longer than the rest of a step.
        """
        columns = self.model.parameters(), self._averages.values(), self._squares.values()
        return [(row[0], list(map(self._pieces, row))) for row in zip(*columns, strict=True)]

    def _update(self) -> None:
        # The function below torch.optim.AdamW: creating an object of that class imports PyTorch's
        # compiler, which takes more than a second.
        rows = [
            (self._pieces(weight.grad), *state)
            for weight, state in self._rows
            if weight.grad is not None
        ]
        columns = zip(*rows, strict=True)
        gradients, parameters, averages, squares = (list(chain(*column)) for column in columns)
        self._step.add_(1)
        torch._fused_adamw_(
            parameters, gradients, averages, squares, [], [self._step] * len(parameters),
            lr=self._rate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=self._weight_decay,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def _pieces(self, tensor: Tensor) -> Pieces:
        return [tensor] if self._piece is None else tensor.view(-1).split(self._piece)

    def state(self) -> dict[str, Tensor]:
        """The tensors that the next epoch depends on, by name: weights, moments and step count."""
        weights = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        return weights | self._averages | self._squares | {"step": self._step}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy the tensors of `state` back."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.working.load_state_dict(self.model.state_dict())


def piece_size(tensors: Sequence[Tensor]) -> int:
    """Numbers per piece, so that one launch of Adam takes all pieces and fills a CUDA device.

    A block of threads takes at most 65,536 numbers of one tensor, and one launch so many tensors:
    depth_to_max_tensors[3] in ATen/native/cuda/MultiTensorApply.cuh.
    """
    most = 252 if int((torch.version.cuda or "0").partition(".")[0]) >= 13 else 36
    total = sum(tensor.numel() for tensor in tensors)
    rest = max(1, most - len(tensors))  # every tensor has one piece that may be smaller
    return 4 * math.ceil(total / rest / 4)  # the kernel reads four numbers at a time
