"""What is promised of thresholds is kept, by simulation of a known population."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from potstill.deploy.candidates import temperature
from potstill.deploy.exit_runtime import KINDS, Judge, Policy
from potstill.deploy.guarantee import Choice, choose, least_promise, upper_bound
from potstill.errors import UserError

CLASSES = 4
STRENGTHS = (1.2, 2.2, 4.0)  # how much each exit sees of the class


def population(count: int, seed: int) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Samples of three exits, each surer than the one before; the first is overconfident."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    hardness = rng.uniform(0.2, 2.0, (count, 1))
    noise = rng.normal(size=(count, CLASSES))
    logits = []
    for strength in STRENGTHS:
        noise = 0.6 * noise + 0.8 * rng.normal(size=(count, CLASSES))
        logits.append(2 * (strength * hardness * np.eye(CLASSES)[labels] + noise))
    return logits, labels


def taken(policy: Policy, logits: list[NDArray[np.float64]]) -> NDArray[np.int64]:
    """Exits by the run-time's own rule, samples taken out on the way."""
    judge = Judge(policy)
    exits = np.zeros(len(logits[0]), dtype=np.int64)
    rows = np.arange(len(exits))
    for number, each in enumerate(logits):
        leaving = judge.leaving(number, each[rows])
        exits[rows[leaving]] = number
        rows = rows[~leaving]
    return exits


def risk(policy: Policy, logits: list[NDArray[np.float64]], labels: NDArray[np.int64]) -> float:
    exits = taken(policy, logits)
    right = np.stack([each.argmax(axis=1) == labels for each in logits])
    return float((right[-1] & ~right[exits, np.arange(len(labels))]).mean())


def test_bounds_by_hand() -> None:
    # nobody of n fails: (1 - bound)^n = 0.1, so for 459 samples 1 - 0.1^(1/459) = 0.005004
    assert upper_bound(0, 459) == pytest.approx(1 - 0.1 ** (1 / 459))
    assert least_promise(459) > 0.005 > least_promise(460)
    assert upper_bound(3, 3) == 1.0
    for failures, samples in ((1, 10), (12, 3500), (40, 41)):
        bound = upper_bound(failures, samples, 0.9)
        assert binom.cdf(failures, samples, bound) == pytest.approx(0.1)


def test_a_temperature_is_found_again() -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(20000, CLASSES))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    for true in (0.25, 1.0, 4.0):
        assert temperature(true * logits, labels) == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize("kind", ["probability", "margin"])
def test_the_promise_is_kept(kind: str) -> None:
    """Of 120 calibrations, at most a tenth may give a risk above the promise, within binomial error."""
    future, truth = population(60_000, seed=10**6)
    trials, kept, early = 120, 0, []
    for trial in range(trials):
        choice = choose(*population(900, seed=trial), kind=kind, max_loss=0.02, seed=trial)
        kept += risk(choice.policy, future, truth) <= choice.promised
        early.append(1 - choice.shares[-1])
    assert kept >= binom.ppf(0.005, trials, 0.9)
    assert np.mean(early) > 0.15  # the promise is not kept by doing nothing


def test_the_simulation_sees_a_promise_that_is_not_kept() -> None:
    """The same with hardly any confidence: about what taking the calibration's own loss at its word gives."""
    future, truth = population(60_000, seed=10**6)
    trials, kept = 40, 0
    for trial in range(trials):
        choice = choose(*population(900, seed=trial), max_loss=0.02, confidence=0.2, seed=trial)
        kept += risk(choice.policy, future, truth) <= choice.promised
    assert kept < binom.ppf(0.005, trials, 0.9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_choice_is_what_the_run_time_does(kind: str) -> None:
    logits, labels = population(4000, seed=1)
    choice = choose(logits, labels, kind=kind, max_loss=0.03, costs=[1.0, 3.0, 4.0], seed=2)
    test = np.random.default_rng(2).permutation(4000)[1200:]
    parts = [each[test] for each in logits]
    exits = taken(choice.policy, parts)
    assert choice.samples == 2800
    assert choice.shares == pytest.approx(np.bincount(exits, minlength=3) / 2800)
    assert choice.risk == pytest.approx(risk(choice.policy, parts, labels[test]))
    assert choice.cost == pytest.approx(np.array([0.25, 0.75, 1.0])[exits].mean())
    assert upper_bound(round(choice.risk * 2800), 2800) <= choice.promised == choice.wished == 0.03
    assert choice.note == ""


def test_a_greater_loss_saves_more() -> None:
    logits, labels = population(5000, seed=4)
    costs = [choose(logits, labels, max_loss=loss).cost for loss in (0.002, 0.01, 0.05, 0.5)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] - costs[2] > 0.1


def test_temperatures_differ_and_are_those_of_the_fitting_part() -> None:
    logits, labels = population(4000, seed=1)
    fit = np.random.default_rng(0).permutation(4000)[:1200]
    choice = choose(logits, labels, max_loss=0.02)
    assert choice.policy.temperatures == tuple(temperature(each[fit], labels[fit]) for each in logits)
    assert choice.policy.temperatures[0] > choice.policy.temperatures[2]


def test_too_few_samples_say_so_and_promise_what_they_can() -> None:
    choice = choose(*population(400, seed=0), max_loss=0.005)
    assert choice.samples == 280
    assert choice.promised == pytest.approx(1 - 0.1 ** (1 / 280))
    assert choice.risk == 0
    assert "280 test samples are too few to promise 0.005 (at least 460 are needed)" in choice.note
    assert "the best that they can promise is 0.0082" in choice.note
    assert choice.note in choice.describe()


def test_a_wished_cost_is_met_and_its_risk_bounded() -> None:
    logits, labels = population(6000, seed=3)
    choice = choose(logits, labels, max_cost=2.0, costs=[1.0, 2.0, 3.0])
    assert choice.wished is None
    assert choice.cost * 3 == pytest.approx(2.0, abs=0.1)
    assert choice.promised == upper_bound(round(choice.risk * choice.samples), choice.samples)
    future = population(60_000, seed=10**6)
    assert risk(choice.policy, *future) <= choice.promised
    impossible = choose(logits, labels, max_cost=0.5, costs=[1.0, 2.0, 3.0])
    assert "no thresholds have a mean cost of 0.5; the least is 1" in impossible.note


def test_a_wish_that_allows_nothing_leaves_nobody() -> None:
    """Exits that know nothing: every sample goes through the whole network, and no loss is promised."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 3000)
    logits = [rng.normal(size=(3000, CLASSES)), 9 * np.eye(CLASSES)[labels]]
    choice = choose(logits, labels, max_loss=0.005)
    assert choice.shares[-1] > 0.98
    assert choice.risk <= 0.005


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({}, "expected one wish, either max_loss or max_cost"),
        ({"max_loss": 0.1, "max_cost": 1.0}, "expected one wish"),
        ({"max_loss": 0.0}, "early_exit.max_loss: expected a share between 0 and 1, got 0.0"),
        ({"max_loss": 0.1, "confidence": 1.0}, "early_exit.confidence: expected a value between 0 and 1"),
        ({"max_loss": 0.1, "costs": [3.0, 2.0, 4.0]}, "expected 3 costs, each at least the one before"),
        ({"max_loss": 0.1, "costs": [1.0, 2.0]}, "expected 3 costs"),
        ({"max_loss": 0.1, "kind": "luck"}, "expected one of probability, entropy, margin, patience"),
    ],
)
def test_bad_wishes(wish: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(*population(100, seed=0), **wish)  # type: ignore[arg-type]


def test_bad_sizes() -> None:
    logits, labels = population(100, seed=0)
    with pytest.raises(UserError, match=r"expected logits \(N, classes\) of two exits or more and N labels"):
        choose(logits, labels[:-1], max_loss=0.1)
    with pytest.raises(UserError, match="of two exits or more"):
        choose(logits[:1], labels, max_loss=0.1)


def test_a_choice_in_words() -> None:
    choice = Choice(Policy("margin", (math.inf,)), 0.01, None, 0.9, 10, 0.0, (0.25, 0.75), 0.9)
    assert choice.describe().startswith("margin, 25 % leave early: at most 1.00 points lost")
