"""What a scheme around another passes on to it."""

from __future__ import annotations

from torch import nn

from potstill.matching.objective import Objective
from potstill.schemes.offline import Offline
from potstill.schemes.stages import Stage

__all__ = ["Around"]


class Around(nn.Module):
    """A scheme that changes what :class:`Offline` sees or who teaches it, and leaves it the rest.

    Attributes:
        parts: What is trained or belongs into checkpoints, those of the inner scheme among them.

    Args:
        inner: Teacher, student and objective; it is no submodule, its parts are this scheme's.
    """

    parts: nn.ModuleDict

    def __init__(self, inner: Offline) -> None:
        super().__init__()
        object.__setattr__(self, "_inner", inner)

    @property
    def inner(self) -> Offline:
        """Teacher, student and objective, and their state."""
        inner: Offline = self.__dict__["_inner"]
        return inner

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        return self.inner.progress

    @progress.setter
    def progress(self, value: float) -> None:
        self.inner.progress = value

    @property
    def student(self) -> nn.Module:
        """The bare student."""
        return self.inner.student

    @property
    def objective(self) -> Objective:
        """What the student minimises, its layers planned."""
        return self.inner.objective

    @property
    def watched(self) -> dict[str, bool]:
        """The student is evaluated after each epoch, and kept."""
        return self.inner.watched

    @property
    def stages(self) -> tuple[Stage, ...]:
        """As the inner scheme's."""
        return self.inner.stages

    def enter(self, stage: str) -> None:
        """Nothing changes with a stage."""

    def trainable(self, stage: str = "train", phase: str = "train") -> dict[str, nn.Module]:
        """What the inner scheme trains, as a loop may have wrapped it."""
        return {name: self.parts[name] for name in self.inner.trainable(stage, phase)}

    def control(self, student: nn.Module) -> Offline:
        """The same training by labels alone."""
        return self.inner.control(student)

    def adopt(self) -> None:
        """Let the inner scheme run the parts as a loop may have wrapped them."""
        for name, part in self.parts.items():
            if name in self.inner.parts:
                self.inner.parts[name] = part
