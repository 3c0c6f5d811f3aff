"""Schedules of the learning rate: functions of the share of the training that is done, in [0, 1).

The rate of an epoch depends on its number alone, so a resumed training has the same.
"""

import math
from collections.abc import Callable

MILESTONES = (0.4, 0.7)


def constant(_: float) -> float:
    """The same rate in every epoch."""
    return 1.0


def cosine(done: float) -> float:
    """From 1 to 0 along half a cosine (Loshchilov & Hutter 2017), without restarts."""
    return (1 + math.cos(math.pi * done)) / 2


def step(done: float) -> float:
    """Multiplied by 10^(-1/5) after 40 % and after 70 %.

    With 500 epochs these are the steps with which pythae reproduces -log p(x) of binarized MNIST.
    """
    return math.pow(10, -sum(done >= milestone for milestone in MILESTONES) / 5)


SCHEDULES: dict[str, Callable[[float], float]] = {
    schedule.__name__: schedule for schedule in (constant, cosine, step)
}
