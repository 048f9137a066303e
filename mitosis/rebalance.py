"""Classic SMOTE on the features of the second stage: its last layer learns from as many figures as of any class."""

from collections import Counter

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn
from torch.nn import functional

from mitosis.errors import ConfigError

__all__ = ["oversample_features", "refit_head"]

_NEIGHBOURS = 5
_DECAY = 1e-3


def oversample_features(
    features: ArrayLike, labels: ArrayLike, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Fill up every class to the size of the largest with points between a member and one of its five nearest.

    A class of a single member has no neighbour and stays as it is.

    Parameters
    ----------
    features : float [N, F]
    labels : int [N]
    seed : int
        The same seed gives the same points.

    Returns
    -------
    float32 [M, F], int64 [M]
        The given ones first.

    Raises
    ------
    ConfigError
        imbalanced-learn is not installed.

    References
    ----------
    Chawla et al.: SMOTE: synthetic minority over-sampling technique. J Artif Intell Res 2002;16:321-357.
    """
    try:
        from imblearn.over_sampling import SMOTE
    except ImportError as error:
        raise ConfigError(
            "verifier.smote needs imbalanced-learn. Install it with: pip install 'mitosis-toolkit[smote]'"
        ) from error
    x, y = np.asarray(features, dtype=np.float32), np.asarray(labels, dtype=np.int64)
    counts = Counter(y.tolist())
    short = {label: n for label, n in counts.items() if 2 <= n < max(counts.values())}
    if not short:
        return x, y
    most = max(counts.values())
    for label, n in sorted(short.items()):  # one at a time: a class of few members has fewer neighbours
        smote = SMOTE(sampling_strategy={label: most}, k_neighbors=min(_NEIGHBOURS, n - 1), random_state=seed)
        x, y = smote.fit_resample(x, y)
    return np.asarray(x, dtype=np.float32), np.asarray(y, dtype=np.int64)


def refit_head(head: nn.Linear, features: ArrayLike, labels: ArrayLike, seed: int) -> None:
    """Learn a last layer anew, in place: logistic regression on oversampled features.

    Parameters
    ----------
    features : float [N, F]
    labels : int [N]
        Indices of the head's outputs.
    """
    x, y = (torch.from_numpy(values) for values in oversample_features(features, labels, seed))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(head(x), y) + _DECAY * head.weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # untyped library
        return value

    with torch.enable_grad():
        head.requires_grad_(True)
        optimizer.step(loss)  # type: ignore[no-untyped-call]  # untyped library
    head.requires_grad_(False)
