"""The verdict: its arithmetic by hand, its words, and how often it cries wolf."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from potstill.metrics.verdict import compare, mean_interval

TRIALS = 20_000


def by_hand(difference: np.ndarray) -> tuple[float, float]:
    """The interval re-typed with plain loops."""
    seeds, samples = difference.shape
    means = [sum(row) / samples for row in difference.tolist()]
    gain = sum(means) / seeds
    between = sum((m - gain) ** 2 for m in means) / (seeds - 1) / seeds
    averaged = [sum(difference[s, i] for s in range(seeds)) / seeds for i in range(samples)]
    sampling = sum((a - gain) ** 2 for a in averaged) / (samples - 1) / samples
    cautious = between * (1 + 6 / (seeds - 1) ** 3)
    freedom = (cautious + sampling) ** 2 / (cautious**2 / (seeds - 1) + sampling**2 / (samples - 1))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(between + sampling)
    return gain - half, gain + half


def test_interval_equals_the_formula_by_hand() -> None:
    random = np.random.default_rng(1)
    student = (random.random((3, 40)) < 0.8).astype(float)
    control = (random.random((3, 40)) < 0.7).astype(float)
    verdict = compare(student, control)
    assert verdict.gain == pytest.approx((student - control).mean())
    assert verdict.interval == pytest.approx(by_hand(student - control))


def test_golden_number() -> None:
    student = np.array([[1, 1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 0, 1, 1]])
    control = np.array([[1, 0, 1, 0, 1, 0, 0, 1], [0, 1, 1, 0, 1, 0, 1, 0]])
    verdict = compare(student, control)
    assert verdict.gain == pytest.approx(0.3125)
    assert verdict.interval == pytest.approx((-0.2614, 0.8864), abs=1e-4)
    assert verdict.verdict == "same"


@pytest.mark.parametrize(("shift", "expected"), [(0.2, "better"), (-0.2, "worse"), (0.0, "same")])
def test_a_clear_effect_is_named(shift: float, expected: str) -> None:
    random = np.random.default_rng(0)
    control = random.random((3, 2000)) < 0.6
    student = random.random((3, 2000)) < 0.6 + shift
    verdict = compare(student, control)
    assert verdict.verdict == expected
    swapped = compare(control, student)
    assert swapped.interval == pytest.approx((-verdict.interval[1], -verdict.interval[0]))


def test_one_seed_says_what_was_not_measured() -> None:
    random = np.random.default_rng(0)
    control, student = random.random((1, 500)) < 0.5, random.random((1, 500)) < 0.9
    verdict = compare(student, control)
    difference = student[0].astype(float) - control[0]
    half = stats.t.ppf(0.975, 499) * difference.std(ddof=1) / math.sqrt(500)
    assert verdict.interval == pytest.approx((verdict.gain - half, verdict.gain + half))
    assert "the spread between runs was not measured" in verdict.reason
    assert "not measured" not in compare(np.vstack([student] * 2), np.vstack([control] * 2)).reason


def test_interval_of_one_arm() -> None:
    right = np.arange(10_000)[None] % 10 != 0
    low, high = mean_interval(right)
    assert (low + high) / 2 == pytest.approx(0.9)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.09 / 10_000), rel=1e-3)


@pytest.mark.parametrize(
    ("student", "control"),
    [
        (np.ones((2, 5)), np.ones((2, 6))),
        (np.ones(5), np.ones(5)),
        (np.ones((2, 1)), np.ones((2, 1))),
        (np.full((2, 5), np.nan), np.ones((2, 5))),
    ],
)
def test_scores_that_cannot_be_compared(student: np.ndarray, control: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        compare(student, control)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_no_effect_is_seldom_called_better(seeds: int) -> None:
    """Seed noise from none to far above the sample noise, with and without noise of their meeting."""
    samples = 50
    for ratio in (0.0, 0.3, 1.0, 3.0, 10.0, 100.0):
        for meeting in (0.0, 1.0):
            random = np.random.default_rng(int(ratio * 10) * 10 + seeds)
            # Variance of the seeds' part of the mean over that of the samples' part is `ratio`.
            seed = random.normal(size=(TRIALS, seeds, 1)) * math.sqrt(ratio * seeds / samples)
            sample = random.normal(size=(TRIALS, 1, samples))
            noise = meeting * random.standard_normal((TRIALS, seeds, samples), dtype=np.float32)
            share = _share_better(seed + sample + noise)
            assert share <= 0.035, (ratio, meeting)


def _share_better(differences: np.ndarray) -> float:
    """The verdict over many trials at once; checked against ``compare`` on the first hundred."""
    _, seeds, samples = differences.shape
    gain = differences.mean(axis=(1, 2))
    between = differences.mean(axis=2).var(axis=1, ddof=1) / seeds
    sampling = differences.mean(axis=1).var(axis=1, ddof=1) / samples
    cautious = between * (1 + 6 / (seeds - 1) ** 3)
    freedom = (cautious + sampling) ** 2 / (cautious**2 / (seeds - 1) + sampling**2 / (samples - 1))
    better = gain > stats.t.ppf(0.975, freedom) * np.sqrt(between + sampling)
    for one in range(100):
        verdict = compare(differences[one], np.zeros((seeds, samples)))
        assert (verdict.verdict == "better") == better[one]
    return float(better.mean())
