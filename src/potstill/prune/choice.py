"""Depth against width: plans that meet a target, each with another mixture, ranked by calibration loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from potstill.errors import UserError
from potstill.prune.gauge import Gauge
from potstill.prune.groups import Group, Plan, Structure
from potstill.prune.importance import Losses, mean_loss
from potstill.prune.removal import removed
from potstill.prune.settings import PruneConfig
from potstill.prune.settling import settled
from potstill.prune.store import Scores

__all__ = ["Candidate", "Chooser", "choose"]

TRIES = 6
NEAR = 0.95
"""A measured time from this share of the target up to the target is near enough."""


@dataclass(frozen=True)
class Candidate:
    """One way to meet the target.

    Attributes:
        plan: What goes.
        cost: Measured, in the target's unit.
        loss: On the calibration samples, before any training.
        trial: The same after a short training, where it was among the best.
    """

    plan: Plan
    cost: float
    loss: float
    trial: float | None = None

    def row(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "blocks": list(self.plan.blocks),
            "units": {name: list(units) for name, units in self.plan.units.items()},
            "cost": self.cost,
            "loss": self.loss,
            "trial": self.trial,
        }


@dataclass
class Chooser:
    """Makes plans for one network.

    Attributes:
        model: The network.
        structure: What may go.
        scores: In which order.
        gauge: What it costs.
        config: The recipe's section.
    """

    model: nn.Module
    structure: Structure
    scores: Scores
    gauge: Gauge
    config: PruneConfig
    _order: list[tuple[Group, int]] = field(init=False)
    _blocks: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self._blocks = sorted(self.structure.blocks, key=self.scores.blocks.__getitem__)
        self._order = sorted(self._spare(), key=self._merit)

    def _spare(self) -> Iterator[tuple[Group, int]]:
        """The units of each group that may go, all but its best."""
        whole = self.gauge.unit_cost(self.model)
        self._saved: dict[str, float] = {}
        for group in self.structure.groups:
            least = max(1, math.ceil(self.config.keep * group.units))
            order = self.scores.units[group.name].argsort()[: group.units - least].tolist()
            if order:
                one = removed(self.model, Plan(units={group.name: (order[0],)}), self.structure)
                self._saved[group.name] = max(whole - self.gauge.unit_cost(one), 1e-12)
            yield from ((group, unit) for unit in order)

    def _merit(self, item: tuple[Group, int]) -> float:
        """Score for each unit of cost that its removal saves."""
        group, unit = item
        return float(self.scores.units[group.name][unit]) / self._saved[group.name]

    def plan(self, depth: int, count: int) -> Plan:
        """The ``depth`` least blocks and the ``count`` least units of what is left go."""
        blocks = tuple(self._blocks[:depth])
        units: dict[str, list[int]] = {}
        for group, unit in self._left(blocks)[:count]:
            units.setdefault(group.name, []).append(unit)
        multiple = self.config.multiple
        trimmed = {}
        for name, gone in units.items():
            keep = self.structure.group(name).units - len(gone)
            fewer = len(gone) - (-keep % multiple)  # the most important of them stay
            if fewer > 0:
                trimmed[name] = tuple(sorted(gone[:fewer]))
        return Plan(blocks, trimmed)

    def _left(self, blocks: tuple[str, ...]) -> list[tuple[Group, int]]:
        return [item for item in self._order if not item[0].within(blocks)]

    def cost(self, depth: int, count: int) -> float:
        """Predicted."""
        return self.gauge.predicted(removed(self.model, self.plan(depth, count), self.structure))

    def depths(self, budget: float) -> list[int]:
        """Numbers of blocks between the fewest with which the budget can be met and the most that it needs.

        Raises:
            UserError: If it cannot be met.
        """
        everything, units = len(self._blocks), len(self._order)
        self.least(budget)
        fewest = self._first(everything, lambda depth: self.cost(depth, units) <= budget)
        most = self._first(everything, lambda depth: self.cost(depth, 0) <= budget)
        return sorted({round(depth) for depth in np.linspace(fewest, most, self.config.candidates)})

    @staticmethod
    def _first(high: int, holds: Callable[[int], bool]) -> int:
        """The smallest number from 0 that holds, as all above it do; ``high`` if none below does."""
        low = 0
        while low < high:
            middle = (low + high) // 2
            if holds(middle):
                high = middle
            else:
                low = middle + 1
        return low

    def least(self, budget: float) -> float:
        """The smallest that the axes allow.

        Raises:
            UserError: If that is above the budget.
        """
        least = self.cost(len(self._blocks), len(self._order))
        if least > budget:
            name, value = self.config.target.given
            raise UserError(
                f"prune.target.{name}",
                f"cannot be reached: the smallest that these axes and prune.keep allow is {least:g} "
                f"({least / self.gauge.whole:.1%} of the model), got {value:g}",
            )
        return least

    def fitted(self, depth: int, budget: float) -> tuple[Plan, float] | None:
        """The plan of this depth that just meets the budget as measured, and its cost; ``None`` if none does.

        A prediction that proves wrong is corrected by what was measured.
        """
        goal, best = budget, None
        for _ in range(TRIES):
            plan = self.plan(depth, self._fewest(depth, goal))
            cost = self.gauge.measured(removed(self.model, plan, self.structure))
            if cost <= budget and (best is None or cost > best[1]):
                best = (plan, cost)
            if cost <= budget and (self.gauge.times is None or cost >= NEAR * budget):
                break
            goal *= (0.5 + 0.5 * NEAR) * budget / cost
        return best

    def _fewest(self, depth: int, goal: float) -> int:
        """The smallest count of units whose removal meets ``goal``, or all."""
        most = len(self._left(tuple(self._blocks[:depth])))
        return self._first(most, lambda count: self.cost(depth, count) <= goal)


def choose(
    chooser: Chooser, budget: float, losses: Losses, trial: Callable[[int, nn.Module], float] | None
) -> list[Candidate]:
    """All candidates that meet the budget, the chosen one first.

    Args:
        chooser: Makes their plans.
        budget: What they may cost.
        losses: The calibration.
        trial: Trains candidate number ``k`` (in the order of the first ranking) shortly and gives its loss.

    Raises:
        UserError: If there are none.
    """
    found = []
    for depth in chooser.depths(budget):
        fitted = chooser.fitted(depth, budget)
        if fitted is not None:
            plan, cost = fitted
            loss = mean_loss(settled(removed(chooser.model, plan, chooser.structure), losses), losses)
            found.append(Candidate(plan, cost, loss))
    if not found:
        name, value = chooser.config.target.given
        raise UserError(f"prune.target.{name}", f"no network measured here met it, got {value:g}")
    found.sort(key=lambda candidate: candidate.loss)
    if trial is None or chooser.config.trial_steps == 0 or len(found) == 1:
        return found
    tried = [
        Candidate(
            one.plan, one.cost, one.loss, trial(place, removed(chooser.model, one.plan, chooser.structure))
        )
        for place, one in enumerate(found[: chooser.config.finalists])
    ]
    tried.sort(key=lambda candidate: candidate.trial if candidate.trial is not None else math.inf)
    return [*tried, *found[chooser.config.finalists :]]
