"""Adam (Kingma & Ba 2015) on float32 weights, also if the matrix products are in bfloat16."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.model.vae import VAE

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Optimizer:
    """Updates the weights of `model` with the gradients of `working`.

    working: in float32 the model itself, in bfloat16 a copy of it that follows each update.
    """

    def __init__(self, model: VAE, learning_rate: float, precision: str = "float32") -> None:
        self.model = model
        dtype = PRECISIONS[precision]
        self.working = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        on_gpu = model.device.type == "cuda"  # a CUDA graph may contain a capturable optimizer
        weights = model.parameters()
        self.adam = torch.optim.Adam(weights, learning_rate, fused=True, capturable=on_gpu)
        # PyTorch creates this state at the first update, which is too late for a checkpoint or a
        # graph.
        for parameter in model.parameters():
            self.adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights."""
        if self.working is self.model:
            self.adam.step()
            return
        pairs = list(zip(self.model.parameters(), self.working.parameters(), strict=True))
        for parameter, working in pairs:
            parameter.grad = None if working.grad is None else working.grad.float()
        self.adam.step()
        for parameter, working in pairs:
            working.copy_(parameter)
        buffers = zip(self.model.buffers(), self.working.buffers(), strict=True)
        for buffer, working_buffer in buffers:  # statistics of normalization layers
            buffer.copy_(working_buffer)

    def state(self) -> dict[str, Tensor]:
        """The tensors that the next epoch depends on, by name: weights, moments and step count."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, tensor in self.adam.state[parameter].items():
                tensors[f"{key}.{name}"] = tensor
        return tensors

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Copy the tensors of `state` back."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.working.load_state_dict(self.model.state_dict())
