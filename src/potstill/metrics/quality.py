"""How good predictions are, from logits and labels: accuracy, calibration, closeness to a teacher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax as _log_softmax

__all__ = [
    "GAINS",
    "SCALELESS",
    "SHARES",
    "Calibration",
    "accuracy",
    "agreement",
    "best_permutation_accuracy",
    "calibration",
    "class_accuracy",
    "gain_unit",
    "kl_to_teacher",
    "log_softmax",
    "negative_log_likelihood",
    "shown",
    "shown_gain",
    "softmax",
]

SHARES = ("accuracy", "map")
"""Metrics that are fractions, shown in percent; their gain is in points."""
GAINS = {"perplexity": "nats a token", "psnr": "dB", "kid": "KID"}
"""What the gain of a metric that is no fraction is measured in."""
SCALELESS = ("kid",)
"""Metrics that are large or small by what they are measured with: four digits are shown."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy lie apart.

    Attributes:
        ece: Expected calibration error, 0 to 1: their mean distance, weighted by the bins' counts.
        confidence: Mean confidence of each bin, NaN where the bin is empty.
        accuracy: Share of right predictions of each bin, NaN where it is empty.
        count: Samples in each bin.
    """

    ece: float
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]


def log_softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Logarithms of the probabilities of ``(N, C)`` logits over a temperature, in float64.

    >>> log_softmax([[0.0, 0.0]]).round(3).tolist()
    [[-0.693, -0.693]]
    """
    values: Floats = _log_softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)
    return values


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities of ``(N, C)`` logits at a temperature, in float64; rows sum to 1.

    >>> softmax([[0.0, 1.0]], temperature=1e-3).tolist()
    [[0.0, 1.0]]
    """
    values: Floats = np.exp(log_softmax(logits, temperature))
    return values


def shown(metric: str, value: float) -> str:
    """A metric as people read it: shares in percent, anything else as a number.

    >>> shown("accuracy", 0.5), shown("perplexity", 12.345)
    ('50.00%', '12.35')
    """
    if metric in SCALELESS:
        return f"{value:.4g}"
    return f"{value:.2%}" if metric in SHARES else f"{value:.2f}"


def shown_gain(metric: str, value: float) -> str:
    """A difference of two arms as people read it, always signed; without its unit.

    >>> shown_gain("accuracy", 0.0123), shown_gain("perplexity", 0.0123)
    ('+1.23', '+0.0123')
    """
    if metric in SCALELESS:
        return f"{value:+.4g}"
    return f"{100 * value:+.2f}" if metric in SHARES else f"{value:+.4f}"


def gain_unit(metric: str) -> str:
    """What a gain is measured in.

    >>> gain_unit("accuracy"), gain_unit("perplexity")
    ('points', 'nats a token')
    """
    return "points" if metric in SHARES else GAINS.get(metric, metric)


def accuracy(logits: ArrayLike, labels: ArrayLike) -> float:
    """Share of ``(N, C)`` logits whose greatest entry is the label ``(N,)``.

    >>> accuracy([[0.1, 0.9], [0.8, 0.2]], [1, 1])
    0.5
    """
    return float((np.asarray(logits).argmax(axis=-1) == np.asarray(labels)).mean())


def class_accuracy(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Accuracy of each class by itself, ``(C,)``; NaN for a class without samples.

    >>> class_accuracy([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 1, 0]).tolist()
    [0.0, 0.5]
    """
    values, truth = np.asarray(logits), np.asarray(labels)
    right = (values.argmax(axis=-1) == truth).astype(np.float64)
    count = np.bincount(truth, minlength=values.shape[-1]).astype(np.float64)
    total = np.bincount(truth, weights=right, minlength=values.shape[-1])
    shares: Floats = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return shares


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike) -> float:
    """Mean of ``-log p(label)`` at temperature 1, in nats.

    >>> round(negative_log_likelihood([[0.0, 0.0]], [1]), 3)
    0.693
    """
    truth = np.asarray(labels)[..., None]
    return float(-np.take_along_axis(log_softmax(logits), truth, axis=-1).mean())


def calibration(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> Calibration:
    """Compare confidence (the greatest probability) with accuracy, in bins of equal width.

    Formula: ``ECE = sum_b n_b / N * |accuracy_b - confidence_b|``; a confidence on an edge counts in the
    lower bin.

    Args:
        probabilities: ``(N, C)``, each row a distribution.
        labels: ``(N,)`` integers.
        bins: Number of bins over 0 to 1.

    Raises:
        ValueError: If the rows are no probabilities; logits need :func:`softmax` first.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks" (2017), https://arxiv.org/abs/1706.04599

    Example:
        >>> calibration([[0.2, 0.8], [0.2, 0.8]], [1, 0], bins=10).ece.__round__(2)
        0.3
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.min() < -1e-6 or not np.allclose(values.sum(axis=-1), 1.0, atol=1e-3):
        raise ValueError("expected probabilities (N, C) that sum to 1, got other rows; use softmax(logits)")
    confidence = values.max(axis=-1).clip(0.0, 1.0)
    right = (values.argmax(axis=-1) == np.asarray(labels)).astype(np.float64)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    filled = np.maximum(count, 1)
    means = np.bincount(place, weights=confidence, minlength=bins) / filled
    shares = np.bincount(place, weights=right, minlength=bins) / filled
    ece = float((np.abs(means - shares) * count).sum() / max(len(confidence), 1))
    empty = count == 0
    means[empty], shares[empty] = np.nan, np.nan
    return Calibration(ece, tuple(means.tolist()), tuple(shares.tolist()), tuple(count.tolist()))


def agreement(first: ArrayLike, second: ArrayLike) -> float:
    """Share of samples on which two networks, given as ``(N, C)`` logits, choose the same class.

    >>> agreement([[1, 0], [1, 0]], [[3, 2], [0, 1]])
    0.5
    """
    return float((np.asarray(first).argmax(axis=-1) == np.asarray(second).argmax(axis=-1)).mean())


def kl_to_teacher(student: ArrayLike, teacher: ArrayLike) -> float:
    """Mean divergence ``KL(teacher || student)`` of ``(N, C)`` logits at temperature 1, in nats.

    >>> round(kl_to_teacher([[0.0, 0.0]], [[0.0, 100.0]]), 3)
    0.693
    """
    log_student, log_teacher = log_softmax(student), log_softmax(teacher)
    return float((np.exp(log_teacher) * (log_teacher - log_student)).sum(axis=-1).mean())


def best_permutation_accuracy(predicted: ArrayLike, labels: ArrayLike, num_classes: int) -> float:
    """Accuracy of predicted classes under the renaming of classes that fits the labels best.

    Far above the plain accuracy, it shows a network that was trained with another class order.

    Args:
        predicted: ``(N,)`` integers.
        labels: ``(N,)`` integers below ``num_classes``.
        num_classes: Number of classes.

    Example:
        >>> best_permutation_accuracy([1, 1, 0, 0], [0, 0, 1, 1], 2)
        1.0
    """
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    answers, truth = np.asarray(predicted), np.asarray(labels)
    size = max(num_classes, int(answers.max(initial=0)) + 1)
    table = np.bincount(truth * size + answers, minlength=size * size).reshape(size, size)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / max(len(truth), 1))
