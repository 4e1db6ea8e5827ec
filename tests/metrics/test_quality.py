"""Measures of prediction quality against slow re-typed formulas."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.special import softmax

from potstill.metrics import quality


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32) * 3


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 5, size=200)


def test_accuracy_and_class_accuracy(logits: np.ndarray, labels: np.ndarray) -> None:
    right = [int(np.argmax(row)) == label for row, label in zip(logits, labels, strict=True)]
    assert quality.accuracy(logits, labels) == pytest.approx(sum(right) / 200)
    for name, value in enumerate(quality.class_accuracy(logits, labels)):
        mine = [hit for hit, label in zip(right, labels, strict=True) if label == name]
        assert value == pytest.approx(sum(mine) / len(mine))


def test_a_class_without_samples_has_no_accuracy() -> None:
    values = quality.class_accuracy(np.eye(3), np.array([0, 1, 1]))
    assert values[:2].tolist() == [1.0, 0.5]
    assert math.isnan(values[2])


def test_negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> None:
    slow = [-math.log(softmax(row.astype(float))[label]) for row, label in zip(logits, labels, strict=True)]
    assert quality.negative_log_likelihood(logits, labels) == pytest.approx(sum(slow) / 200)


def test_calibration_by_hand(logits: np.ndarray, labels: np.ndarray) -> None:
    probabilities = softmax(logits.astype(float), axis=1)
    found = quality.calibration(probabilities, labels, bins=7)
    total = 0.0
    for place in range(7):
        mine = [i for i in range(200) if place / 7 < probabilities[i].max() <= (place + 1) / 7]
        assert found.count[place] == len(mine)
        if not mine:
            assert math.isnan(found.accuracy[place])
            continue
        confidence = sum(probabilities[i].max() for i in mine) / len(mine)
        share = sum(probabilities[i].argmax() == labels[i] for i in mine) / len(mine)
        assert (found.confidence[place], found.accuracy[place]) == pytest.approx((confidence, share))
        total += len(mine) / 200 * abs(confidence - share)
    assert found.ece == pytest.approx(total)


def test_calibration_of_certainty_and_of_logits() -> None:
    certain = quality.calibration(np.eye(4), np.arange(4))
    assert certain.ece == 0.0
    assert certain.count[-1] == 4
    with pytest.raises(ValueError, match="softmax"):
        quality.calibration(np.array([[3.0, -1.0]]), np.array([0]))


def test_closeness_to_the_teacher(logits: np.ndarray) -> None:
    other = np.random.default_rng(2).normal(size=(200, 5))
    p, q = softmax(other, axis=1), softmax(logits.astype(float), axis=1)
    slow = sum(p[i, j] * math.log(p[i, j] / q[i, j]) for i in range(200) for j in range(5)) / 200
    assert quality.kl_to_teacher(logits, other) == pytest.approx(slow)
    assert quality.kl_to_teacher(logits, logits + 7) == pytest.approx(0.0, abs=1e-6)
    assert quality.agreement(logits, other) == pytest.approx((p.argmax(1) == q.argmax(1)).mean())


def test_extreme_logits_stay_finite() -> None:
    extreme = np.array([[1e4, 0.0], [0.0, 1e4]])
    assert math.isfinite(quality.kl_to_teacher(extreme, extreme[::-1]))
    assert quality.negative_log_likelihood(extreme, [1, 0]) == pytest.approx(1e4)


def test_temperature_softens() -> None:
    soft = quality.softmax(np.array([[4.0, 0.0]]), temperature=4.0)
    assert soft == pytest.approx(softmax(np.array([[1.0, 0.0]]), axis=1))


def test_best_permutation_equals_trying_them_all() -> None:
    random = np.random.default_rng(3)
    labels = random.integers(0, 4, size=100)
    renamed = np.array([2, 0, 3, 1])[labels]
    predicted = np.where(random.random(100) < 0.8, renamed, random.integers(0, 4, size=100))
    slow = max((np.array(order)[predicted] == labels).mean() for order in itertools.permutations(range(4)))
    assert quality.best_permutation_accuracy(predicted, labels, 4) == pytest.approx(slow)
    assert slow > (predicted == labels).mean() + 0.3
