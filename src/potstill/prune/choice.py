"""Depth against width: plans that meet a target, each with another mixture, ranked by calibration loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from potstill.errors import UserError
from potstill.prune.gauge import Gauge
from potstill.prune.groups import Group, Plan, Structure
from potstill.prune.importance import Losses, mean_loss
from potstill.prune.settings import PruneConfig
from potstill.prune.settling import settled
from potstill.prune.store import Scores
from potstill.prune.surgery import cut

__all__ = ["Candidate", "Chooser", "choose"]

TRIES = 6
HEADS = ("heads", "kv_groups")
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


Step = tuple[tuple[Group, int], ...]
"""Units that go at once: one, or as many from every layer as keep all of them equally wide."""


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
    _order: list[Step] = field(init=False)
    _blocks: list[str] = field(init=False)

    def __post_init__(self) -> None:
        blocks = sorted(self.structure.blocks, key=self.scores.blocks.__getitem__)
        most = len(blocks)
        if self.structure.family:  # a transformer without layers is none
            most -= max(1, math.ceil(self.config.keep * most))
        self._blocks = blocks[: max(0, most)]
        self._skeleton = self.model
        if self.gauge.by_shapes:
            self._skeleton = copy.deepcopy(self.model).to("meta")
        self._whole = self.gauge.unit_cost(self._skeleton)
        sets: dict[str, list[Group]] = {}
        for group in self.structure.groups:
            sets.setdefault(group.together or group.name, []).append(group)
        rated = [pair for groups in sets.values() for pair in self._steps(groups)]
        self._order = [step for _, step in sorted(rated, key=lambda pair: pair[0])]

    def _steps(self, groups: list[Group]) -> Iterator[tuple[float, Step]]:
        """What goes from groups of equal width, one step after the other, each with its merit.

        The merit of a step is the score that is lost for each unit of cost that is saved.
        """
        width = groups[0].units
        least = max(1, math.ceil(self.config.keep * width))
        multiple = 1 if groups[0].axis in HEADS else self.config.multiple
        allowed = groups[0].left or range(1, width)
        widths = [left for left in sorted(allowed, reverse=True) if left >= least and left % multiple == 0]
        orders = {group.name: self.scores.units[group.name].argsort().tolist() for group in groups}
        saved = 0.0
        for before, after in pairwise([width, *widths]):
            gone = slice(width - before, width - after)
            step = tuple((group, unit) for group in groups for unit in orders[group.name][gone])
            if not saved:
                units = {group.name: tuple(orders[group.name][gone]) for group in groups}
                one = cut(self._skeleton, Plan(units=units), self.structure)
                saved = max(self._whole - self.gauge.unit_cost(one), 1e-12) / (before - after)
            lost = sum(float(self.scores.units[group.name][unit]) for group, unit in step)
            yield lost / (saved * (before - after)), step

    @property
    def most_blocks(self) -> int:
        """How many blocks may go."""
        return len(self._blocks)

    @property
    def most_steps(self) -> int:
        """How many steps of units there are."""
        return len(self._order)

    def plan(self, depth: int, count: int) -> Plan:
        """The ``depth`` least blocks go, and the ``count`` least steps of what is left."""
        blocks = tuple(self._blocks[:depth])
        units: dict[str, list[int]] = {}
        for step in self._left(blocks)[:count]:
            for group, unit in step:
                units.setdefault(group.name, []).append(unit)
        return Plan(blocks, {name: tuple(sorted(gone)) for name, gone in units.items()})

    def _left(self, blocks: tuple[str, ...]) -> list[Step]:
        steps = (tuple(item for item in step if not item[0].within(blocks)) for step in self._order)
        return [step for step in steps if step]

    def cost(self, depth: int, count: int) -> float:
        """Predicted."""
        return self.gauge.predicted(cut(self._skeleton, self.plan(depth, count), self.structure))

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
            name, value = self.gauge.target.given
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
            cost = self.gauge.measured(cut(self._skeleton, plan, self.structure))
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
            loss = mean_loss(settled(cut(chooser.model, plan, chooser.structure), losses), losses)
            found.append(Candidate(plan, cost, loss))
    if not found:
        name, value = chooser.gauge.target.given
        raise UserError(f"prune.target.{name}", f"no network measured here met it, got {value:g}")
    found.sort(key=lambda candidate: candidate.loss)
    if trial is None or chooser.config.trial_steps == 0 or len(found) == 1:
        return found
    tried = [
        Candidate(one.plan, one.cost, one.loss, trial(place, cut(chooser.model, one.plan, chooser.structure)))
        for place, one in enumerate(found[: chooser.config.finalists])
    ]
    tried.sort(key=lambda candidate: candidate.trial if candidate.trial is not None else math.inf)
    return [*tried, *found[chooser.config.finalists :]]
