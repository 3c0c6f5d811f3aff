"""−log p(x) by annealed importance sampling (Neal 2001), far tighter than importance sampling.

A chain starts at z ~ q(z|x) and moves through f_β(z) ∝ q(z|x)^(1−β) p(x, z)^β, β = 0 … 1, to the
posterior, as in Wu et al. (2017), "On the quantitative analysis of decoder-based generative
models". With w = p(x, z) / q(z|x) that is q w^β, and its weight is Π_t w(z_t−1)^(β_t − β_t−1): the
mean over chains is an unbiased estimate of p(x), so −log of it is an upper bound in expectation.

Each step is one of Hamiltonian Monte Carlo for u = (z − μ) / σ, in which q is N(0, I).
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.data.datasets import Split
from pipeline.evaluation.bounds import in_order
from pipeline.evaluation.importance import draw_labels
from pipeline.model.network import Batch, to_batch
from pipeline.model.objective import reparameterize
from pipeline.model.vae import VAE
from pipeline.runtime.randomness import PROTOCOL_SEED, generator

CHAINS = 10  # per image
STEPS = 100  # from q(z|x) to the posterior
LEAPFROGS = 10  # per step
ACCEPTANCE = 0.65  # that the step sizes aim at (Neal 2011, "MCMC using Hamiltonian dynamics")
ADAPTATION = 1.05  # factor of a step size that is too small
FIRST_STEP = 0.1
CHUNK = 20  # images computed at a time


class State(NamedTuple):
    """Where chains are: u [R, Z], log w [R, 1] and its gradient with respect to u [R, Z]."""

    u: Tensor
    log_w: Tensor
    gradient: Tensor


class AnnealedChains:
    """Chains for R rows of a batch, one each."""

    def __init__(self, model: VAE, batch: Batch, betas: Tensor) -> None:
        self.model, self.batch, self.betas = model, batch, betas
        with torch.no_grad():
            self.posterior = model.encode(batch)
            self.prior = model.p_z()

    def log_weights(
        self, noise: torch.Generator, step_sizes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(log weight [R], step sizes [T, R, 1]) of chains with new noise.

        step_sizes: those of an earlier call. Without them they adapt to what is accepted; such
        chains depend on their own past, so their weights are of no use as an estimate.
        """
        state = self._evaluate(_normal(self.posterior.mu, noise))
        total = torch.zeros_like(state.log_w)
        step, used = torch.full_like(total, FIRST_STEP), []
        for t, (before, beta) in enumerate(pairwise(self.betas)):
            total += (beta - before) * state.log_w
            step = step if step_sizes is None else step_sizes[t]
            used.append(step)
            state, accepted = self._move(state, beta, step, noise)
            step = step * ADAPTATION ** torch.where(accepted, 1 - ACCEPTANCE, -ACCEPTANCE)
        return total.squeeze(1), torch.stack(used)

    def _move(
        self, start: State, beta: Tensor, step: Tensor, noise: torch.Generator
    ) -> tuple[State, Tensor]:
        """One step of Hamiltonian Monte Carlo that leaves q w^β invariant."""
        momentum = _normal(start.u, noise)
        before = _energy(start, momentum, beta)
        state = start
        for _ in range(LEAPFROGS):
            momentum = momentum + 0.5 * step * (beta * state.gradient - state.u)
            state = self._evaluate(state.u + step * momentum)
            momentum = momentum + 0.5 * step * (beta * state.gradient - state.u)
        log_ratio = before - _energy(state, momentum, beta)
        uniform = torch.rand(log_ratio.shape, generator=noise).to(log_ratio)
        accepted = uniform.log() < log_ratio  # never, if it is NaN
        pairs = zip(state, start, strict=True)
        return State(*(torch.where(accepted, new, old) for new, old in pairs)), accepted

    def _evaluate(self, u: Tensor) -> State:
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            z = reparameterize(self.posterior, u)
            log_ratio = self.prior.log_ratio(z, self.posterior.log_var, u)
            recon = self.model.neg_log_prob(z.unsqueeze(1), self.batch)
            log_w = log_ratio.unsqueeze(1) - recon
            (gradient,) = torch.autograd.grad(log_w.sum(), u)
        return State(u.detach(), log_w.detach(), gradient)


def annealed_bounds(model: VAE, split: Split, workers: int) -> Tensor:
    """The bound of −log p(x) of each image, [N], on the CPU, with a progress bar.

    On the CPU `workers` chunks are computed at a time; the results do not depend on it.
    """

    def compute(first: int) -> Tensor:
        batch = to_batch(split[first : first + CHUNK], model.device)
        images = range(first, first + len(batch.x))
        noise = generator(PROTOCOL_SEED, "annealing", first)
        return chain_bounds(model, batch, images, noise).cpu()

    starts = range(0, len(split.images), CHUNK)
    return torch.cat(list(in_order(compute, starts, model.device, workers)))


@torch.no_grad()
def chain_bounds(
    model: VAE, batch: Batch, images: range, noise: torch.Generator, *,
    num_chains: int = CHAINS, num_steps: int = STEPS,
) -> Tensor:  # fmt: skip
    """The bound of −log p(x) from S chains of T steps for each of the images: [B], in nats.

    The step sizes come from one more chain for each image, whose weight is not used.
    """
    betas = torch.linspace(0, 1, num_steps + 1).to(batch.x)
    _, step_sizes = AnnealedChains(model, batch, betas).log_weights(noise)
    rows = torch.arange(len(batch.x)).repeat_interleave(num_chains)
    labels = draw_labels(model, batch, num_chains, images).y
    if labels is not None:
        labels = labels.view(len(images), -1).expand(-1, num_chains).flatten()
    chains = AnnealedChains(model, Batch(batch.x[rows], labels), betas)
    log_w, _ = chains.log_weights(noise, step_sizes[:, rows])
    return math.log(num_chains) - log_w.view(-1, num_chains).logsumexp(dim=1)


def _normal(like: Tensor, noise: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=noise).to(like)


def _energy(state: State, momentum: Tensor, beta: Tensor) -> Tensor:
    """−log of the density of u and momentum, up to a constant."""
    squares = (state.u.square() + momentum.square()).sum(dim=1, keepdim=True)
    return 0.5 * squares - beta * state.log_w
