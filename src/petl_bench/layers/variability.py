"""How well a layer's states tell classes apart (Xie et al., Findings of EMNLP 2022, section 3.1, and their code)."""

from __future__ import annotations

import math

import numpy as np


def variability(states: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> float:
    """The metric nu: spread within classes relative to the spread between them; low where a layer is specialised.

    `nu = trace(Sw pinv(Sb)) / |Y|`, with the within-class covariance Sw averaged over classes, and Sb the covariance of
    the class means around *their* mean: each class weighs the same whatever its size. Computed in float64 in the space
    of the class means, at most |Y| - 1 dimensions, which gives the same number without the d x d matrices.

    nu depends on the number of examples: compare layers at the same one.

    Args:
        states: One pooled state an example, shape (examples, d).
        labels: Class indices, shape (examples,).
        num_classes: How many classes there must be; None: those that occur.

    Raises:
        ValueError: where a class has no example, there are fewer than two, or a state is not finite. A class with one
            example is allowed; it adds no spread of its own.

    Returns:
        nu; infinity where all classes have the same mean.
    """
    states = np.asarray(states, dtype=np.float64)
    if not np.isfinite(states).all():
        raise ValueError("a hidden state is not finite")
    if not np.isfinite(labels).all():
        raise ValueError("a label is not finite")
    found, sizes = np.unique(labels, return_counts=True)
    if num_classes is not None and set(found.tolist()) != set(range(num_classes)):
        missing = sorted(set(range(num_classes)) - set(found.tolist()))
        if missing:
            raise ValueError(f"class {missing[0]} has no example among {len(labels)} rows")
        raise ValueError(f"labels outside 0..{num_classes - 1}")
    if len(found) < 2:
        raise ValueError("at least two classes are needed")
    if sizes.max() < 2:
        raise ValueError("no class has two examples, so there is no spread within classes")
    means = np.stack([states[labels == label].mean(axis=0) for label in found])
    between = (means - means.mean(axis=0)) / np.sqrt(len(found))
    _, singular, directions = np.linalg.svd(between, full_matrices=False)
    kept = singular > singular.max() * max(between.shape) * np.finfo(np.float64).eps
    # Means that differ by less than rounding are the same.
    kept &= singular > np.abs(states).max() * max(between.shape) * np.finfo(np.float64).eps
    if not kept.any():
        return math.inf
    scaled = directions[kept] / singular[kept, None]
    spread = [
        np.square((states[labels == label] - mean) @ scaled.T).sum(axis=1).mean()
        for label, mean in zip(found, means, strict=True)
    ]
    return float(np.sum(spread) / len(found) ** 2)


def bins_of(targets: np.ndarray, num_bins: int) -> np.ndarray:
    """Classes of about equal size for regression targets: the bounds are their quantiles; empty bins are left out."""
    bounds = np.unique(np.quantile(targets, np.linspace(0, 1, num_bins + 1)[1:-1], method="higher"))
    # A bound at the lowest target would leave nothing below it, and many equal targets must not swallow the others.
    bounds = bounds[bounds > targets.min()]
    if not len(bounds):
        bounds = np.unique(targets)[1:2]
    return np.unique(np.searchsorted(bounds, targets, side="right"), return_inverse=True)[1]
