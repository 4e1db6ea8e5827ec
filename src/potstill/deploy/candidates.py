"""Policies for early exits, from nobody leaving to everybody, laid out on samples whose labels are known.

Temperatures and the path are fitted on a part of the samples; the rest is left to test them.
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

from potstill.deploy.exit_runtime import Judge, Policy
from potstill.errors import UserError

__all__ = ["Laid", "Sample", "candidates", "lay_out", "leave", "num_tested", "temperature"]

Array = NDArray[Any]
FITTING = 0.3  # share of the samples that fits temperatures and the path
LEVELS = 40  # steps that a threshold goes from nobody to everybody


class Sample:
    """Scores and answers of calibration samples at all exits.

    Args:
        policy: What the scores are.
        logits: Of each exit in order and of the whole network last, ``(N, classes)`` each.
        labels: ``(N,)`` integers.
    """

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

    def num_failures(self, thresholds: Array) -> int:
        """How many there are with these thresholds."""
        return int(self.failures(self.taken(thresholds)).sum())

    def __len__(self) -> int:
        return int(self.right.shape[1])


@dataclass(frozen=True)
class Laid:
    """Policies on a path, and the samples left to test them.

    Attributes:
        base: The policy by which nobody leaves, its temperatures fitted.
        path: Thresholds from nobody leaving to everybody, and the mean cost of each.
        test: The samples that fitted nothing.
        costs: Up to each exit and of the whole.
    """

    base: Policy
    path: list[tuple[Array, float]]
    test: Sample
    costs: Array

    def policy(self, thresholds: Array) -> Policy:
        """The policy with these thresholds."""
        return Policy(self.base.kind, tuple(map(float, thresholds)), self.base.temperatures)


def lay_out(
    logits: Sequence[Array],
    labels: Array,
    kind: str,
    costs: Sequence[float] | None,
    fitting: float = FITTING,
    seed: int = 0,
) -> Laid:
    """Fit temperatures and a path of policies on a part of the samples; see :func:`candidates`.

    Raises:
        UserError: If sizes do not fit.
    """
    checked = _checked(logits, labels, costs)
    order = np.random.default_rng(seed).permutation(len(labels))
    count = len(labels) - num_tested(len(labels), fitting)
    fit, test = order[:count], order[count:]
    temperatures = tuple(temperature(each[fit], labels[fit]) for each in logits)
    base = Policy(kind, (math.inf,) * (len(logits) - 1), temperatures)
    path = _path(Sample(base, [each[fit] for each in logits], labels[fit]), checked)
    return Laid(base, path, Sample(base, [each[test] for each in logits], labels[test]), checked)


def candidates(
    logits: Sequence[Array],
    labels: Array,
    *,
    kind: str = "probability",
    costs: Sequence[float] | None = None,
    fitting: float = FITTING,
    seed: int = 0,
) -> list[Policy]:
    """The policies, from nobody leaving to everybody, of which :func:`guarantee.choose` takes one.

    Args:
        logits: Of each exit in order and of the whole network last, ``(N, classes)`` each.
        labels: ``(N,)`` integers.
        kind: Of the policies.
        costs: Up to each exit and of the whole; evenly spread by default.
        fitting: Share of the samples that lays them out.
        seed: Of the split.
    """
    laid = lay_out(logits, labels, kind, costs, fitting, seed)
    return [laid.policy(thresholds) for thresholds, _ in laid.path]


def _checked(logits: Sequence[Array], labels: Array, costs: Sequence[float] | None) -> Array:
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
    return np.asarray(costs)


def _path(sample: Sample, costs: Array) -> list[tuple[Array, float]]:
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


def num_tested(samples: int, fitting: float = FITTING) -> int:
    """How many of the calibration samples :func:`guarantee.choose` tests its policies on.

    >>> num_tested(5000)
    3500
    """
    return samples - max(1, round(fitting * samples))


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
    return Sample(policy, logits, np.zeros(len(logits[0]))).taken(np.asarray(policy.thresholds))
