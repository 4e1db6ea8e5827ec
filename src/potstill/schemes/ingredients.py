"""What a scheme of a recipe is made from, and what its settings have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from potstill.batch import Batch
from potstill.errors import UserError
from potstill.matching.objective import Objective

__all__ = ["LESSON", "Ingredients", "Networks", "TeacherUse", "refuse_auto"]

TeacherUse = Literal["needed", "allowed", "refused"]
Networks = dict[str, int | None]
"""Names of networks, each with its place in ``networks``; ``None`` for the student's architecture."""

LESSON: Mapping[str, Any] = {"labels": {"weight": 1.0}, "kl": {"weight": 1.0, "temperature": 1.0}}
"""Labels and another network's answers, side by side."""


@dataclass(frozen=True, kw_only=True)
class Ingredients:
    """What a scheme is made from.

    Attributes:
        fresh: A fresh network by its place in ``networks`` (``None`` for the student's architecture) and
            number; number 0 has the initial weights that the control has.
        teacher: The trained teacher, where the recipe has one.
        objective: What is minimised.
        example: A small batch, for shapes.
        samples: Size of the training set.
        classes: Number of classes.
        seed: Of the training.
    """

    fresh: Callable[[int | None, int], nn.Module]
    teacher: nn.Module | None
    objective: Objective
    example: Batch
    samples: int
    classes: int
    seed: int = 0


def refuse_auto(objective: Objective, kind: str) -> None:
    """Refuse weights that are measured, where there is not one gradient of the labels to measure against.

    Raises:
        UserError: At the term's weight.
    """
    for term in objective.terms.values():
        if term.share is not None:
            raise UserError(f"{term.where}.weight", f"auto has no meaning with scheme: {kind}; give a number")
