"""Classifiers that predict the label from μ, trained on the training images' μ.

The labels play no part in the training of an unconditional VAE.
"""

from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, from_numpy

PROBES = {
    # Brute force is exact for any z_dim, with one order of the neighbors.
    "knn_accuracy": KNeighborsClassifier(15, algorithm="brute"),
    "probe_accuracy": make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
}


def correct(
    name: str, train_mu: Tensor, train_labels: Tensor, mu: Tensor, labels: Tensor
) -> Tensor:
    """Whether a probe finds the label: codes [N, Z] → 0 or 1 per image of the test split."""
    with threadpool_limits(1):  # with other sums its iterations end in other bits
        PROBES[name].fit(train_mu.double().numpy(), train_labels.numpy())
        predicted = PROBES[name].predict(mu.double().numpy())
    return from_numpy(predicted == labels.numpy()).float()
