"""The share of what was lost that training brought back."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.results.recovery import regained


def test_the_share_and_its_interval_are_those_of_a_bootstrap() -> None:
    random = np.random.default_rng(0)
    start = random.normal(-4.6, 0.5, (1, 400))
    teacher = start + random.normal(1.8, 0.4, (1, 400))
    arm = start + 0.75 * (teacher - start) + random.normal(0, 0.3, (1, 400))
    found = regained(arm, start, teacher)
    assert found is not None
    share, (low, high) = found
    assert share == pytest.approx((arm.mean() - start.mean()) / (teacher.mean() - start.mean()))
    drawn = []
    for _ in range(2000):
        rows = random.integers(0, 400, 400)
        lost = (teacher - start)[0, rows].mean()
        drawn.append((arm - start)[0, rows].mean() / lost)
    assert low == pytest.approx(np.quantile(drawn, 0.025), abs=0.003)
    assert high == pytest.approx(np.quantile(drawn, 0.975), abs=0.003)


def test_seeds_widen_the_interval() -> None:
    random = np.random.default_rng(1)
    start, teacher = np.zeros((1, 50)), np.ones((1, 50)) + random.normal(0, 0.01, (1, 50))
    apart = np.array([[0.6], [0.8]]) * np.ones((2, 50))
    found = regained(apart, start, teacher)
    assert found is not None
    assert found[0] == pytest.approx(0.7, abs=0.01)
    assert found[1][1] - found[1][0] > 0.5


def test_where_nothing_was_lost_nothing_is_regained() -> None:
    assert regained(np.ones((1, 4)), np.ones((1, 4)), np.zeros((1, 4))) is None
