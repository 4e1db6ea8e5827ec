"""Thresholds of early exits for a stated loss or a stated cost, with a promise that holds.

Learn, then test: one part of the calibration samples fits temperatures and lays out a path of policies, from
nobody leaving to everybody; the other part tests them in that order, each with an exact binomial bound, and
stops at the first that fails. With the stated confidence, the policy that comes out has at most the promised
risk: the share of samples where the whole network is right and the exit that is taken is wrong. No accuracy
can fall by more. The samples must be new to all weights, the exits' too.

Reference:
    Angelopoulos, Bates, Candes, Jordan, Lei, "Learn then Test: Calibrating Predictive Algorithms to Achieve
    Risk Control", 2021, https://arxiv.org/abs/2110.01052
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from scipy.stats import beta

from potstill.deploy.exit_runtime import Judge, Policy
from potstill.errors import UserError

__all__ = [
    "Choice",
    "candidates",
    "choose",
    "least_promise",
    "leave",
    "num_tested",
    "temperature",
    "upper_bound",
]

Array = NDArray[Any]
CONFIDENCE = 0.9
FITTING = 0.3  # share of the samples that fits temperatures and the path
LEVELS = 40  # steps that a threshold goes from nobody to everybody


@dataclass(frozen=True)
class Choice:
    """A policy and what is promised of it.

    Attributes:
        policy: Temperatures and thresholds.
        promised: The risk is at most this, with the confidence.
        wished: The largest loss that was wished for; ``None`` where a cost was.
        confidence: Of the promise.
        samples: Number of samples that tested it.
        risk: Share of them where the whole network is right and the exit taken wrong.
        shares: Share of them at each exit.
        cost: Their mean cost, as a share of the whole network's.
        note: What stands in the way of the wish, empty where nothing does.
    """

    policy: Policy
    promised: float
    wished: float | None
    confidence: float
    samples: int
    risk: float
    shares: tuple[float, ...]
    cost: float
    note: str = ""

    def describe(self) -> str:
        """In words.

        >>> Choice(Policy("margin", (0.9,)), 0.005, 0.005, 0.9, 3000, 0.003, (0.6, 0.4), 0.7).describe()
        'margin, 60 % leave early: at most 0.50 points lost with confidence 0.9 (0.30 lost of 3000 samples), \
mean cost 0.70 of the whole network'
        """
        early = 1 - self.shares[-1]
        text = (
            f"{self.policy.kind}, {100 * early:.0f} % leave early: at most {100 * self.promised:.2f} points "
            f"lost with confidence {self.confidence:g} ({100 * self.risk:.2f} lost of {self.samples} "
            f"samples), mean cost {self.cost:.2f} of the whole network"
        )
        return f"{text}; {self.note}" if self.note else text


def temperature(logits: Array, labels: Array) -> float:
    """The temperature at which the logits' probabilities fit the labels best (least cross-entropy).

    Args:
        logits: ``(N, classes)``.
        labels: ``(N,)`` integers.

    Reference:
        Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017,
        https://arxiv.org/abs/1706.04599

    >>> rng = np.random.default_rng(0)
    >>> logits = rng.normal(size=(4000, 3))
    >>> labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    >>> round(temperature(5 * logits, labels))
    5
    """
    precise = logits.astype(np.float64)
    right = precise[np.arange(len(labels)), labels]

    def loss(log: float) -> float:
        scale = math.exp(-log)
        return float((logsumexp(scale * precise, axis=1) - scale * right).mean())

    found = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return float(math.exp(found.x))


def upper_bound(failures: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """The exact (Clopper-Pearson) upper bound of a rate.

    >>> round(upper_bound(0, 459), 4)
    0.005
    """
    if failures >= samples:
        return 1.0
    return float(beta.ppf(confidence, failures + 1, samples - failures))


def least_promise(samples: int, confidence: float = CONFIDENCE) -> float:
    """The smallest risk that so many samples can promise, where none of them fails."""
    return upper_bound(0, samples, confidence)


def choose(
    logits: Sequence[Array],
    labels: Array,
    *,
    kind: str = "probability",
    max_loss: float | None = None,
    max_cost: float | None = None,
    costs: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
    fitting: float = FITTING,
    seed: int = 0,
) -> Choice:
    """Choose thresholds for a stated loss (at the least cost) or a stated mean cost (at the least loss).

    Args:
        logits: Of each exit in order and of the whole network last, ``(N, classes)`` each.
        labels: ``(N,)`` integers.
        kind: Of the policy: ``probability``, ``entropy``, ``margin`` or ``patience``.
        max_loss: Largest risk, such as 0.005 for half a point.
        max_cost: Largest mean cost, in the units of ``costs``; the risk is then bounded, the mean cost is
            what the fitting part has.
        costs: Time or operations up to each exit and of the whole; evenly spread by default.
        confidence: With which the promise holds, over the draw of the calibration samples.
        fitting: Share of the samples that fits temperatures and the path.
        seed: Of the split.

    Returns:
        The policy and its promise. Where the samples are too few for the wished loss, the best that they
        can promise, with a note.

    Raises:
        UserError: If sizes do not fit, or not exactly one wish is stated.
    """
    costs = _checked(logits, labels, max_loss, max_cost, costs, confidence)
    base, path, test = _laid_out(logits, labels, kind, costs, fitting, seed)
    tested = _Sample(base, [each[test] for each in logits], labels[test])
    if max_cost is not None:
        return _for_cost(path, tested, base, np.asarray(costs), max_cost, confidence)
    assert max_loss is not None
    least = least_promise(len(test), confidence)
    promised, note = max(max_loss, least), ""
    if promised > max_loss:
        needed = math.ceil(math.log(1 - confidence) / math.log1p(-max_loss))
        note = (
            f"{len(test)} test samples are too few to promise {max_loss:g} (at least {needed} are needed); "
            f"the best that they can promise is {least:.2g}"
        )
    chosen = path[0][0]
    for thresholds, _ in path:
        failures = int(tested.failures(tested.taken(thresholds)).sum())
        if upper_bound(failures, len(test), confidence) > promised * (1 + 1e-9):
            break
        chosen = thresholds
    return _choice(chosen, tested, base, np.asarray(costs), promised, max_loss, confidence, note)


def num_tested(samples: int, fitting: float = FITTING) -> int:
    """How many of the calibration samples :func:`choose` tests its policies on.

    >>> num_tested(5000)
    3500
    """
    return samples - max(1, round(fitting * samples))


def candidates(
    logits: Sequence[Array],
    labels: Array,
    *,
    kind: str = "probability",
    costs: Sequence[float] | None = None,
    fitting: float = FITTING,
    seed: int = 0,
) -> list[Policy]:
    """The policies, from nobody leaving to everybody, of which :func:`choose` takes one.

    Args:
        logits: Of each exit in order and of the whole network last, ``(N, classes)`` each.
        labels: ``(N,)`` integers.
        kind: Of the policies.
        costs: Up to each exit and of the whole; evenly spread by default.
        fitting: Share of the samples that lays them out.
        seed: Of the split.
    """
    costs = _checked(logits, labels, 0.5, None, costs, CONFIDENCE)
    base, path, _ = _laid_out(logits, labels, kind, costs, fitting, seed)
    return [Policy(kind, tuple(map(float, thresholds)), base.temperatures) for thresholds, _ in path]


def _laid_out(
    logits: Sequence[Array], labels: Array, kind: str, costs: Sequence[float], fitting: float, seed: int
) -> tuple[Policy, list[tuple[Array, float]], NDArray[np.int64]]:
    """A policy with fitted temperatures by which nobody leaves, the path, and the samples left to test."""
    order = np.random.default_rng(seed).permutation(len(labels))
    count = len(labels) - num_tested(len(labels), fitting)
    fit, test = order[:count], order[count:]
    temperatures = tuple(temperature(each[fit], labels[fit]) for each in logits)
    base = Policy(kind, (math.inf,) * (len(logits) - 1), temperatures)
    return base, _path(_Sample(base, [each[fit] for each in logits], labels[fit]), np.asarray(costs)), test


def _checked(
    logits: Sequence[Array],
    labels: Array,
    max_loss: float | None,
    max_cost: float | None,
    costs: Sequence[float] | None,
    confidence: float,
) -> Sequence[float]:
    if (max_loss is None) == (max_cost is None):
        raise UserError("early_exit", "expected one wish, either max_loss or max_cost")
    if max_loss is not None and not 0 < max_loss < 1:
        raise UserError("early_exit.max_loss", f"expected a share between 0 and 1, got {max_loss}")
    if not 0 < confidence < 1:
        raise UserError("early_exit.confidence", f"expected a value between 0 and 1, got {confidence}")
    shapes = [each.shape for each in logits]
    if len(shapes) < 2 or len(set(shapes)) > 1 or shapes[0][0] != len(labels) or len(labels) < 2:
        raise UserError(
            "early_exit", f"expected logits (N, classes) of two exits or more and N labels, got {shapes} and "
            f"{len(labels)}"
        )  # fmt: skip
    costs = costs if costs is not None else [float(number + 1) for number in range(len(logits))]
    if len(costs) != len(logits) or any(b < a for a, b in itertools.pairwise(costs)) or costs[0] < 0:
        raise UserError(
            "early_exit.costs",
            f"expected {len(logits)} costs, each at least the one before, got {list(costs)}",
        )
    return costs


def leave(policy: Policy, logits: Sequence[Array]) -> NDArray[np.int64]:
    """The exit that each sample takes by ``policy``, where the answers of all exits are known.

    Args:
        policy: When a sample leaves.
        logits: Of each exit in order and of the whole network last, ``(N, classes)`` each.

    Returns:
        ``(N,)``, the number of the exit, from 0.

    >>> leave(Policy("margin", (0.5,)), [np.array([[9.0, 0.0], [0.1, 0.0]])] * 2).tolist()
    [0, 1]
    """
    return _Sample(policy, logits, np.zeros(len(logits[0]))).taken(np.asarray(policy.thresholds))


class _Sample:
    """Scores and answers of calibration samples at all exits."""

    def __init__(self, policy: Policy, logits: Sequence[Array], labels: Array) -> None:
        judge = Judge(policy)
        early = logits[:-1]
        self.scores = np.stack([judge.score(number, each) for number, each in enumerate(early)])  # (K, N)
        self.right = np.stack([each.argmax(axis=1) == labels for each in logits])  # (K + 1, N)

    def taken(self, thresholds: Array) -> NDArray[np.int64]:
        """The exit that each sample takes, ``(N,)``."""
        leaves = self.scores >= thresholds[:, None]
        return np.where(leaves.any(axis=0), leaves.argmax(axis=0), len(thresholds))

    def failures(self, taken: Array) -> NDArray[np.bool_]:
        """Where the whole network is right and the exit taken wrong, ``(N,)``."""
        lost: NDArray[np.bool_] = self.right[-1] & ~self.right[taken, np.arange(len(taken))]
        return lost


def _path(sample: _Sample, costs: Array) -> list[tuple[Array, float]]:
    """Thresholds from nobody leaving to everybody, and the mean cost of each.

    Each step lowers the threshold that saves most for what it loses; a step that loses nothing comes first.
    """
    levels = [np.unique(np.quantile(scores, np.linspace(0, 1, LEVELS + 1)))[::-1] for scores in sample.scores]
    places = [-1] * len(levels)
    thresholds = np.full(len(levels), math.inf)
    path = [(thresholds, float(costs[-1]))]
    while True:
        lost = sample.failures(sample.taken(thresholds)).mean()
        best: tuple[float, int, Array, float] | None = None
        for number, level in enumerate(levels):
            if places[number] + 1 == len(level):
                continue
            tried = thresholds.copy()
            tried[number] = level[places[number] + 1]
            taken = sample.taken(tried)
            saved = path[-1][1] - costs[taken].mean()
            more = sample.failures(taken).mean() - lost
            worth = saved / max(more, 1e-9) if saved > 0 else -more
            if best is None or worth > best[0]:
                best = (worth, number, tried, float(costs[taken].mean()))
        if best is None:
            return path
        places[best[1]] += 1
        thresholds = best[2]
        path.append((thresholds, best[3]))


def _for_cost(
    path: Sequence[tuple[Array, float]],
    tested: _Sample,
    base: Policy,
    costs: Array,
    max_cost: float,
    confidence: float,
) -> Choice:
    """The first policy of the path that is cheap enough: picked before the test, so one bound is exact."""
    cheap = [thresholds for thresholds, cost in path if cost <= max_cost]
    note = ""
    if not cheap:
        least = min(cost for _, cost in path)
        note = f"no thresholds have a mean cost of {max_cost:g}; the least is {least:.3g}"
    chosen = cheap[0] if cheap else path[-1][0]
    failures = int(tested.failures(tested.taken(chosen)).sum())
    promised = upper_bound(failures, tested.right.shape[1], confidence)
    return _choice(chosen, tested, base, costs, promised, None, confidence, note)


def _choice(
    thresholds: Array,
    tested: _Sample,
    base: Policy,
    costs: Array,
    promised: float,
    wished: float | None,
    confidence: float,
    note: str,
) -> Choice:
    taken = tested.taken(thresholds)
    shares = np.bincount(taken, minlength=len(costs)) / len(taken)
    return Choice(
        Policy(base.kind, tuple(map(float, thresholds)), base.temperatures),
        promised,
        wished,
        confidence,
        len(taken),
        float(tested.failures(taken).mean()),
        tuple(map(float, shares)),
        float(costs[taken].mean() / costs[-1]),
        note,
    )
