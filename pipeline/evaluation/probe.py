"""Accuracy of classifiers that predict the label from μ, trained on the training images' μ.

Both are scikit-learn's with its defaults. The labels play no part in the training of an
unconditional VAE.
"""

from typing import NamedTuple

import torch
from sklearn.base import ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

NEIGHBORS = 15


class Codes(NamedTuple):
    """μ [N, Z] of q(z|x), and the labels [N] of the images."""

    mu: Tensor
    labels: Tensor


def knn_correct(train: Codes, test: Codes) -> Tensor:
    """Whether most of the 15 nearest training codes have the label: 0 or 1 per test image, [N]."""
    # Brute force is exact for any z_dim, with one order of the neighbors.
    neighbors = min(NEIGHBORS, len(train.mu))
    return _correct(KNeighborsClassifier(neighbors, algorithm="brute"), train, test)


def linear_correct(train: Codes, test: Codes) -> Tensor:
    """Whether multinomial logistic regression on standardized codes finds the label, [N]."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with threadpool_limits(1):  # with other sums its iterations end in other bits
        return _correct(
            model, Codes(train.mu.double(), train.labels), Codes(test.mu.double(), test.labels)
        )


def _correct(model: ClassifierMixin, train: Codes, test: Codes) -> Tensor:
    model.fit(train.mu.numpy(), train.labels.numpy())
    return torch.from_numpy(model.predict(test.mu.numpy()) == test.labels.numpy()).float()
