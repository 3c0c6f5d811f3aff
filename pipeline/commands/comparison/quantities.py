"""How metrics are written, which direction is better, and what they mean.

A metric that is not listed here is shown under its own name.
"""

from typing import NamedTuple

LOWER, HIGHER, NEITHER = -1, 1, 0
PAIRED = ["nll", "neg_elbo", "nll_binarized", "recon", "kl"]  # one value per image
NATS = "Likelihood and its parts, nats per image"
CODE = "Latent code and reconstruction"
SCORES = "Samples, scored by the classifier"


class Quantity(NamedTuple):
    """One metric; `section` is the table of the page that shows it."""

    symbol: str
    digits: int = 4
    better: int = NEITHER
    section: str = "Other metrics"
    meaning: str = ""

    def show(self, value: float) -> str:
        """Return the value as text."""
        return f"{value:.{self.digits}f}".replace("-", "−")

    def verdict(self, sign: int) -> str:
        """Return what a difference to the baseline with this sign means."""
        if self.better == NEITHER:
            return {-1: "lower", 0: "not significant", 1: "higher"}[sign]
        return {-1: "worse", 0: "not significant", 1: "better"}[sign * self.better]


QUANTITIES = {
    "nll": Quantity("−log p(x)", 2, LOWER, NATS, "importance sampling; an upper bound"),
    "neg_elbo": Quantity("−ELBO", 2, LOWER, NATS, "recon + KL: an upper bound of −log p(x)"),
    "nll_binarized": Quantity("−log p(b)", 2, LOWER, NATS, "b: one fixed binarization of x"),
    "recon": Quantity("recon", 2, NEITHER, NATS, "distortion: −log p(x|z), z sampled from q(z|x)"),
    "kl": Quantity("KL", 2, NEITHER, NATS, "rate: KL(q(z|x) ‖ p(z))"),
    "bits_per_dim": Quantity("bits/dim", 3, LOWER, NATS, "−log2 p(x) per pixel of 256 values"),
    "jensen_gap": Quantity("gap", 2, NEITHER, NATS, "−ELBO minus −log p(x)"),
    "neg_iwae": Quantity("−IWAE", 2, LOWER, NATS, "the bound with samples from q(z|x) itself"),
    "nll_prior": Quantity("prior", 2, LOWER, NATS, "the bound with samples from the prior"),
    "ess": Quantity("ESS", 1, HIGHER, NATS, "effective sample size behind −log p(x)"),
    "active_units": Quantity("active units", 1, NEITHER, CODE, "dimensions with Var(μ) > 0.01"),
    "mutual_information": Quantity("I(x; z)", 2, NEITHER, CODE, "in nats, at most log N"),
    "total_correlation": Quantity("TC", 2, NEITHER, CODE, "dependence between dimensions, in nats"),
    "dimension_wise_kl": Quantity("dim. KL", 2, NEITHER, CODE, "Σ KL(q(z_j) ‖ p(z_j)), in nats"),
    "knn_accuracy": Quantity("k-NN accuracy", 4, HIGHER, CODE, "labels from the neighbors of μ"),
    "probe_accuracy": Quantity("probe", 4, HIGHER, CODE, "accuracy of a linear classifier of μ"),
    "mse": Quantity("mse", 5, LOWER, CODE, "squared error of the reconstruction per pixel"),
    "frechet_distance": Quantity("Fréchet distance", 2, LOWER, SCORES, "samples to test images"),
    "precision": Quantity("precision", 3, HIGHER, SCORES, "share of samples near test images"),
    "recall": Quantity("recall", 3, HIGHER, SCORES, "share of test images near samples"),
    "density": Quantity("density", 3, HIGHER, SCORES, "precision, less sensitive to outliers"),
    "coverage": Quantity("coverage", 3, HIGHER, SCORES, "share of test images with a sample near"),
    "label_agreement": Quantity("label", 4, HIGHER, SCORES, "samples that are of their class"),
    "num_images": Quantity("images", 0, meaning="test images that the means are over"),
}


def quantity(name: object) -> Quantity:
    """Return how a metric is shown."""
    return QUANTITIES.get(str(name), Quantity(str(name)))
