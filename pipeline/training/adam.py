"""Adam (Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization") with its state in plain sight."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.model.vae import VAE


class Adam:
    """Steps on `model` in float32, by the gradients of `working`.

    That is `model` itself, or with another `precision` a copy in that type which follows it at every step. Gradients
    have a place of their own from the beginning and stay there.
    """

    def __init__(self, model: VAE, learning_rate: float, precision: torch.dtype = torch.float32) -> None:
        self.learning_rate = learning_rate
        self.weights = [parameter.detach() for parameter in model.parameters()]
        self._apart = precision != self.weights[0].dtype
        self.working = copy.deepcopy(model).to(precision) if self._apart else model
        self._copies = [parameter.detach() for parameter in self.working.parameters()] if self._apart else []
        self.grads = [torch.zeros_like(parameter) for parameter in self.working.parameters()]
        for parameter, grad in zip(self.working.parameters(), self.grads, strict=True):
            parameter.grad = grad
        self.exp_avg = [torch.zeros_like(weights) for weights in self.weights]
        self.exp_avg_sq = [torch.zeros_like(weights) for weights in self.weights]
        self.steps = torch.zeros((), device=self.weights[0].device)

    @property
    def state(self) -> dict[str, Tensor]:
        """All that a step depends on besides weights and gradients, by name."""
        moments = {"exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
        return {"step": self.steps} | {
            f"{name}.{i}": tensor for name, tensors in moments.items() for i, tensor in enumerate(tensors)
        }

    @property
    def tensors(self) -> list[Tensor]:
        """All that a step changes."""
        return [*self.weights, *self._copies, *self.state.values()]

    def step(self) -> None:
        """Change the weights by what the gradients of `working` say."""
        self.steps.add_(1)
        # The kernel under torch.optim.Adam(fused=True), without what that does around it at every step.
        torch._fused_adam_(
            self.weights,
            [grad.float() for grad in self.grads] if self._apart else self.grads,
            self.exp_avg,
            self.exp_avg_sq,
            [],
            [self.steps] * len(self.weights),
            lr=self.learning_rate,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )
        if self._apart:
            self.follow()

    def follow(self) -> None:
        """Give `working` the weights of `model`, where it is a copy."""
        if self._apart:
            torch._foreach_copy_(self._copies, self.weights)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back a `state`, after the weights. Raises KeyError or RuntimeError where it is another model's."""
        for name, tensor in self.state.items():
            if state[name].shape != tensor.shape:
                raise RuntimeError(f"{name}: {tuple(state[name].shape)} in place of {tuple(tensor.shape)}")
            tensor.copy_(state[name])
        self.follow()
