"""Accuracy of classifiers that predict the label from μ, trained on the training images' μ.

Both are scikit-learn's with its defaults. The labels play no part in the training of an
unconditional VAE.
"""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor, from_numpy

NEIGHBORS = 15


def knn_correct(train_mu: Tensor, train_labels: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
    """Whether most of the 15 nearest training codes have the label: 0 or 1 per image, [N]."""
    # Brute force is exact for any z_dim, with one order of the neighbors.
    model = KNeighborsClassifier(NEIGHBORS, algorithm="brute")
    model.fit(train_mu.numpy(), train_labels.numpy())
    return _correct(model.predict(mu.numpy()), labels)


def linear_correct(train_mu: Tensor, train_labels: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
    """Whether multinomial logistic regression on standardized codes finds the label, [N]."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with threadpool_limits(1):  # with other sums its iterations end in other bits
        model.fit(train_mu.double().numpy(), train_labels.numpy())
        return _correct(model.predict(mu.double().numpy()), labels)


def _correct(predicted: "np.ndarray", labels: Tensor) -> Tensor:
    return from_numpy(predicted == labels.numpy()).float()
