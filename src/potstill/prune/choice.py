"""Plans that meet a target: some of the least blocks go, then the least units, of one kind more or less."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import nn

from potstill.errors import UserError
from potstill.prune.gauge import Gauge
from potstill.prune.groups import Group, Plan, Structure
from potstill.prune.settings import PruneConfig
from potstill.prune.store import Scores
from potstill.prune.surgery import cut

__all__ = ["Chooser"]

TRIES = 6
HEADS = ("heads", "kv_groups")
TILT = 8.0
NEAR = 0.95
"""A measured time from this share of the target up to the target is near enough."""


Step = tuple[tuple[Group, int], ...]
"""Units that go at once: one, or as many from every layer as keep all of them equally wide."""


def _kind(group: Group) -> str:
    """What groups that stay equally wide have in common, in every round."""
    return group.together or group.name


@dataclass
class Chooser:
    """Makes plans for one network.

    Attributes:
        model: The network.
        structure: What may go.
        scores: In which order.
        gauge: What it costs.
        config: The recipe's section.
        original: What could go before the first round, of which ``keep`` is a share; what may go now
            where it is left out.
    """

    model: nn.Module
    structure: Structure
    scores: Scores
    gauge: Gauge
    config: PruneConfig
    original: Structure | None = None
    _order: list[tuple[float, Step]] = field(init=False)
    _blocks: list[str] = field(init=False)

    def __post_init__(self) -> None:
        blocks = sorted(self.structure.blocks, key=self.scores.blocks.__getitem__)
        most = len(blocks)
        if self.structure.family:  # a transformer without layers is none
            most -= max(1, math.ceil(self.config.keep * len((self.original or self.structure).blocks)))
        self._blocks = blocks[: max(0, most)]
        self._skeleton = self.model
        if self.gauge.by_shapes:
            self._skeleton = copy.deepcopy(self.model).to("meta")
        self._whole = self.gauge.unit_cost(self._skeleton)
        self._wide = {_kind(group): group.units for group in (self.original or self.structure).groups}
        sets: dict[str, list[Group]] = {}
        for group in self.structure.groups:
            sets.setdefault(_kind(group), []).append(group)
        self._order = [pair for groups in sets.values() for pair in self._steps(groups)]

    def _steps(self, groups: list[Group]) -> Iterator[tuple[float, Step]]:
        """What goes from groups of equal width, one step after the other, each with its merit.

        The merit of a step is the score that is lost for each unit of cost that is saved.
        """
        width = groups[0].units
        least = max(1, math.ceil(self.config.keep * self._wide.get(_kind(groups[0]), width)))
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

    @property
    def tilts(self) -> tuple[float, ...]:
        """How much more one kind of units may matter than scores say, where there are several kinds."""
        return (1.0, TILT, 1 / TILT) if len({group.axis for group in self.structure.groups}) > 1 else (1.0,)

    def plan(self, depth: int, count: int, tilt: float = 1.0) -> Plan:
        """The ``depth`` least blocks go, and the ``count`` least steps of what is left.

        With ``tilt`` scores of neurons and channels count so many times; 1 where it is left out.
        """
        blocks = tuple(self._blocks[:depth])
        units: dict[str, list[int]] = {}
        for step in self._left(blocks, tilt)[:count]:
            for group, unit in step:
                units.setdefault(group.name, []).append(unit)
        return Plan(blocks, {name: tuple(sorted(gone)) for name, gone in units.items()})

    def _left(self, blocks: tuple[str, ...], tilt: float = 1.0) -> list[Step]:
        def tilted(pair: tuple[float, Step]) -> float:
            return pair[0] if pair[1][0][0].axis in HEADS else pair[0] * tilt

        ordered = (step for _, step in sorted(self._order, key=tilted))
        steps = (tuple(item for item in step if not item[0].within(blocks)) for step in ordered)
        return [step for step in steps if step]

    def cost(self, depth: int, count: int, tilt: float = 1.0) -> float:
        """Predicted."""
        return self.gauge.predicted(cut(self._skeleton, self.plan(depth, count, tilt), self.structure))

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
                f"cannot be reached: the smallest that these axes and prune.keep allow is "
                f"{self.gauge.written(least)} ({least / self.gauge.whole:.1%} of the model), got {value:g}",
            )
        return least

    def fitted(self, depth: int, budget: float, tilt: float = 1.0) -> tuple[Plan, float] | None:
        """The plan of this mixture that just meets the budget as measured, and its cost, if any does.

        A prediction that proves wrong is corrected by what was measured.
        """
        goal, best = budget, None
        for _ in range(TRIES):
            plan = self.plan(depth, self._fewest(depth, goal, tilt), tilt)
            cost = self.gauge.measured(cut(self._skeleton, plan, self.structure))
            if cost <= budget and (best is None or cost > best[1]):
                best = (plan, cost)
            if cost <= budget and (self.gauge.times is None or cost >= NEAR * budget):
                break
            goal *= (0.5 + 0.5 * NEAR) * budget / cost
        return best

    def _fewest(self, depth: int, goal: float, tilt: float) -> int:
        """The smallest count of units whose removal meets ``goal``, or all."""
        most = len(self._left(tuple(self._blocks[:depth])))
        return self._first(most, lambda count: self.cost(depth, count, tilt) <= goal)
