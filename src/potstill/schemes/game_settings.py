"""The recipe's ``scheme`` section of a generator with a discriminator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from potstill.losses import Range
from potstill.losses.adversarial import Game
from potstill.models import ModelConfig
from potstill.schemes.adversarial import Adversarial
from potstill.schemes.ingredients import Ingredients, Networks, TeacherUse, refuse_auto

__all__ = ["AdversarialConfig"]

PATCHES = "potstill.models.discriminators:PatchDiscriminator"


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """A generator that learns from its teacher and from a discriminator, which learns along."""

    kind: Literal["adversarial"] = "adversarial"
    """Who teaches whom."""
    discriminator: ModelConfig = field(default_factory=lambda: ModelConfig(model=PATCHES))
    """The network that judges; with ``weights`` it starts from those of the teacher's training."""
    game: Game = "hinge"
    """What the two minimise."""
    weight: Annotated[float, Range(least=0)] = 1.0
    """Weight of what deceives the discriminator."""
    conditional: bool = False
    """Let the discriminator see the input beside the image."""
    r1: Annotated[float, Range(least=0)] = 0.0
    """Weight of the penalty on its gradient at real images."""

    teacher: ClassVar[TeacherUse] = "allowed"
    distill: ClassVar[Mapping[str, Any]] = {"labels": {"weight": 100.0}}

    def networks_by_name(self) -> Networks:
        """One student; the discriminator is a means."""
        return {"student": None}

    def build(self, given: Ingredients) -> Adversarial:
        """The scheme; its discriminator has the initial weights that the control's has."""
        refuse_auto(given.objective, "adversarial")
        return Adversarial(
            given.fresh(None, 0),
            given.teacher,
            given.objective,
            given.fresh(0, 1),
            example=given.example,
            game=self.game,
            weight=self.weight,
            conditional=self.conditional,
            r1=self.r1,
            samples=given.samples,
        )
