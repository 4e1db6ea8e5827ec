"""Depth against width, neurons against heads: mixtures that meet a target, ranked by calibration loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from potstill.errors import UserError
from potstill.prune.choice import Chooser
from potstill.prune.groups import Plan, Structure
from potstill.prune.importance import Losses, mean_loss
from potstill.prune.settling import settled
from potstill.prune.surgery import cut

__all__ = ["Candidate", "choose"]


@dataclass(frozen=True)
class Candidate:
    """One way to meet the target.

    Attributes:
        plan: What goes.
        cost: Measured, in the target's unit.
        loss: On the calibration samples, before any training.
        trial: The same after a short training, where it was among the best.
        gone: How many units go, by axis.
    """

    plan: Plan
    cost: float
    loss: float
    trial: float | None = None
    gone: Mapping[str, int] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "blocks": list(self.plan.blocks),
            "units": {name: list(units) for name, units in self.plan.units.items()},
            "cost": self.cost,
            "loss": self.loss,
            "trial": self.trial,
            "gone": dict(self.gone),
        }


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
    found: list[Candidate] = []
    for depth in chooser.depths(budget):
        for tilt in chooser.tilts:
            fitted = chooser.fitted(depth, budget, tilt)
            if fitted is not None and all(fitted[0] != other.plan for other in found):
                plan, cost = fitted
                loss = mean_loss(settled(cut(chooser.model, plan, chooser.structure), losses), losses)
                found.append(Candidate(plan, cost, loss, gone=_gone(plan, chooser.structure)))
    if not found:
        name, value = chooser.gauge.target.given
        raise UserError(f"prune.target.{name}", f"no network measured here met it, got {value:g}")
    found.sort(key=lambda candidate: _rank(candidate.loss))
    if trial is None or chooser.config.trial_steps == 0 or len(found) == 1:
        return found
    tried = [
        replace(one, trial=trial(place, cut(chooser.model, one.plan, chooser.structure)))
        for place, one in enumerate(found[: chooser.config.finalists])
    ]
    tried.sort(key=lambda candidate: _rank(candidate.trial))
    return [*tried, *found[chooser.config.finalists :]]


def _rank(loss: float | None) -> float:
    """What is no number comes last."""
    return math.inf if loss is None or math.isnan(loss) else loss


def _gone(plan: Plan, structure: Structure) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, units in plan.units.items():
        axis = structure.group(name).axis
        found[axis] = found.get(axis, 0) + len(units)
    return found
