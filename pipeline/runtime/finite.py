"""What is not finite is found where it arises, and named."""

from torch import Tensor

from pipeline.errors import UNFIT, UserError


class DivergenceError(UserError):
    """A number is not finite: the training has diverged."""

    status = UNFIT

    def __init__(self, what: str) -> None:
        advice = "lower it, then change batch_size or h_layers"
        super().__init__("params.yaml: learning_rate", f"{what} is not finite; {advice}")


def check_finite(values: Tensor, what: str) -> None:
    """Raise DivergenceError unless all numbers are finite."""
    if not values.isfinite().all():
        raise DivergenceError(what)
