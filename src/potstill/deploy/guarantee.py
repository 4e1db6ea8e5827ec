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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from potstill.deploy.candidates import FITTING, Laid, lay_out
from potstill.deploy.exit_runtime import Policy
from potstill.errors import UserError

__all__ = ["Choice", "choose", "least_promise", "upper_bound"]

Array = NDArray[Any]
CONFIDENCE = 0.9


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
    _check(max_loss, max_cost, confidence)
    laid = lay_out(logits, labels, kind, costs, fitting, seed)
    if max_cost is not None:
        return _for_cost(laid, max_cost, confidence)
    assert max_loss is not None
    samples = len(laid.test)
    least = least_promise(samples, confidence)
    promised, note = max(max_loss, least), ""
    if promised > max_loss:
        needed = math.ceil(math.log(1 - confidence) / math.log1p(-max_loss))
        note = (
            f"{samples} test samples are too few to promise {max_loss:g} (at least {needed} are needed); "
            f"the best that they can promise is {least:.2g}"
        )
    chosen = laid.path[0][0]
    for thresholds, _ in laid.path:
        if upper_bound(laid.test.num_failures(thresholds), samples, confidence) > promised * (1 + 1e-9):
            break
        chosen = thresholds
    return _choice(chosen, laid, promised, max_loss, confidence, note)


def _check(max_loss: float | None, max_cost: float | None, confidence: float) -> None:
    if (max_loss is None) == (max_cost is None):
        raise UserError("early_exit", "expected one wish, either max_loss or max_cost")
    if max_loss is not None and not 0 < max_loss < 1:
        raise UserError("early_exit.max_loss", f"expected a share between 0 and 1, got {max_loss}")
    if not 0 < confidence < 1:
        raise UserError("early_exit.confidence", f"expected a value between 0 and 1, got {confidence}")


def _for_cost(laid: Laid, max_cost: float, confidence: float) -> Choice:
    """The first policy of the path that is cheap enough: picked before the test, so one bound is exact."""
    cheap = [thresholds for thresholds, cost in laid.path if cost <= max_cost]
    note = ""
    if not cheap:
        least = min(cost for _, cost in laid.path)
        note = f"no thresholds have a mean cost of {max_cost:g}; the least is {least:.3g}"
    chosen = cheap[0] if cheap else laid.path[-1][0]
    promised = upper_bound(laid.test.num_failures(chosen), len(laid.test), confidence)
    return _choice(chosen, laid, promised, None, confidence, note)


def _choice(
    thresholds: Array, laid: Laid, promised: float, wished: float | None, confidence: float, note: str
) -> Choice:
    taken = laid.test.taken(thresholds)
    shares = np.bincount(taken, minlength=len(laid.costs)) / len(taken)
    return Choice(
        laid.policy(thresholds),
        promised,
        wished,
        confidence,
        len(taken),
        float(laid.test.failures(taken).mean()),
        tuple(map(float, shares)),
        float(laid.costs[taken].mean() / laid.costs[-1]),
        note,
    )
