"""What a scheme tells the loop about the course of the training."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stage"]


@dataclass(frozen=True)
class Stage:
    """One stretch of the training with its own optimiser.

    Attributes:
        name: Shown in progress and metrics.
        share: Its length, in lengths of the recipe's training: 1 for a whole one, less for a part of it.
        phases: What alternates within a step; most schemes have one.
    """

    name: str
    share: float = 1.0
    phases: tuple[str, ...] = ("train",)
