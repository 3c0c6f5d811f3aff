"""What was measured: how a quantity is written, which way is better, and what it is. Names as in metrics.json."""

from typing import NamedTuple


class Quantity(NamedTuple):
    """One quantity; `better` is -1 where lower is better, 1 where higher is, 0 where neither is by itself."""

    name: str
    symbol: str
    unit: str
    digits: int  # after the point
    better: int
    meaning: str

    @property
    def wish(self) -> str:
        """Which way is better, in words; "" where neither is."""
        return {-1: "lower is better", 1: "higher is better"}.get(self.better, "")

    def verdict(self, sign: int) -> str:
        """What a difference of that sign to the baseline means."""
        if sign == 0:
            return "not told apart"
        if self.better == 0:
            return "lower" if sign < 0 else "higher"
        return "better" if sign == self.better else "worse"


NATS = "nats"
QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("nll", "−log p(x)", NATS, 2, -1, "by importance sampling; an upper bound, close where ESS is large"),
        Quantity("neg_elbo", "−ELBO", NATS, 2, -1, "recon + KL, the loss: an upper bound of −log p(x)"),
        Quantity("recon", "recon", NATS, 2, 0, "distortion: −log p(x|z), z sampled from q(z|x)"),
        Quantity("kl", "KL", NATS, 2, 0, "rate: KL(q(z|x) ‖ p(z))"),
        Quantity("jensen_gap", "gap", NATS, 2, 0, "−ELBO less −log p(x): how far q(z|x) is from the true posterior"),
        Quantity("nll_binarized", "−log p(b)", NATS, 2, -1, "−log p of one fixed binarization of the test images"),
        Quantity("neg_iwae", "−IWAE", NATS, 2, -1, "the bound with draws from q(z|x) itself"),
        Quantity("nll_prior", "from the prior", NATS, 2, -1, "the bound with draws from the prior: loose, but simple"),
        Quantity("ess", "ESS", "draws", 1, 1, "effective sample size of the draws behind −log p(x)"),
        Quantity(
            "active_units", "active units", "", 0, 0, "latent dimensions whose mean moves with x (variance > 0.01)"
        ),
        Quantity("mutual_information", "I(x; z)", NATS, 2, 0, "what z says of x; at most log N"),
        Quantity("total_correlation", "TC", NATS, 2, 0, "how dependent the latent dimensions are on one another"),
        Quantity("dimension_wise_kl", "dim. KL", NATS, 2, 0, "how far each dimension alone is from the prior, summed"),
        Quantity("fd_judge", "FD", "", 2, -1, "Fréchet distance of samples and test images, in the judge's features"),
        Quantity("precision", "precision", "", 3, 1, "the share of samples that look like test images"),
        Quantity("recall", "recall", "", 3, 1, "the share of test images that look like samples"),
        Quantity("density", "density", "", 3, 1, "precision, counted more robustly; about 1 for real images"),
        Quantity("coverage", "coverage", "", 3, 1, "the share of test images that have a sample near them"),
        Quantity("knn_accuracy", "k-NN accuracy", "", 4, 1, "digits told by their neighbours among the latent means"),
        Quantity("probe_accuracy", "probe accuracy", "", 4, 1, "digits told by a linear classifier of latent means"),
        Quantity("mse", "mse", "", 5, -1, "squared error of the reconstruction, per pixel"),
    )
}
TABLES = {
    "Likelihood and its parts, nats per image": (
        "nll", "neg_elbo", "recon", "kl", "jensen_gap", "nll_binarized", "neg_iwae", "nll_prior", "ess",
    ),
    "What the latent code holds, and reconstruction": (
        "active_units", "mutual_information", "total_correlation", "dimension_wise_kl", "knn_accuracy",
        "probe_accuracy", "mse",
    ),
    "Samples, as the judge sees them": ("fd_judge", "precision", "recall", "density", "coverage"),
}  # fmt: skip
PAIRED = ("nll", "neg_elbo", "nll_binarized", "recon", "kl")  # measured for every image


def show(value: float | None, quantity: Quantity) -> str:
    """A value as it is written everywhere; "—" where it was not measured."""
    return "—" if value is None else f"{value:.{quantity.digits}f}".replace("-", "−")


def upper(sentence: str) -> str:
    """A sentence with a capital letter, all others as they are."""
    return sentence[:1].upper() + sentence[1:]
