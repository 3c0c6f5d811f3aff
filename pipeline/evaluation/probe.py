"""How much of the label the latent code tells: of μ alone, to classifiers that never saw an image.

Both are scikit-learn's with its defaults, on dimensions scaled to unit variance for the linear one. The labels play no
part in the training of the VAE.
"""

from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

NEIGHBORS = 15


def knn_correct(train_mu: Tensor, train_labels: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
    """Whether most of the 15 nearest training codes have the label: codes [N, Z] → float [len(mu)] of 0 and 1."""
    # Brute force is exact at any z_dim, and one order of the neighbours.
    return _correct(KNeighborsClassifier(NEIGHBORS, algorithm="brute"), train_mu, train_labels, mu, labels)


def linear_correct(train_mu: Tensor, train_labels: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
    """Whether multinomial logistic regression on the codes gives the label: codes [N, Z] → float [len(mu)]."""
    with threadpool_limits(1):  # its iterations end in other bits with other sums
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        return _correct(model, train_mu.double(), train_labels, mu.double(), labels)


def _correct(model: Any, train_mu: Tensor, train_labels: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
    model.fit(train_mu.numpy(), train_labels.numpy())
    return torch.from_numpy(model.predict(mu.numpy()) == labels.numpy()).float()
