"""What the loop asks of a scheme, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from potstill.batch import Batch, Step
from potstill.schemes.stages import Stage

__all__ = ["Aided", "Scheme", "State", "Trained", "Watchful"]

State = dict[str, Tensor]


class Scheme(Protocol):
    """What the loop asks of a scheme."""

    parts: nn.ModuleDict
    progress: float

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stretches of the training."""

    @property
    def networks(self) -> dict[str, nn.Module]:
        """All bare networks by name."""

    @property
    def watched(self) -> dict[str, bool]:
        """Networks that are evaluated after each epoch, and whether each may be kept as the student."""

    def enter(self, stage: str) -> None:
        """Begin a stage, or go on within it after a resume."""

    def stepped(self, steps: int) -> None:
        """Hear that the optimisers took step number ``steps`` of the stage, from 1."""

    def trainable(self, stage: str, phase: str) -> dict[str, nn.Module]:
        """What learns."""

    def counts(self, batch: Batch, phase: str) -> dict[str, float]:
        """What each part of the loss is divided by."""

    def __call__(self, batch: Batch, phase: str) -> Step:
        """One forward pass."""


@runtime_checkable
class Watchful(Protocol):
    """A scheme that has something to say of how a training goes."""

    def notices(self, means: Mapping[str, float]) -> Iterable[str]:
        """Sentences for the user after a step's phase, from the mean of each part, unweighted."""


@runtime_checkable
class Aided(Protocol):
    """A scheme whose students need others to learn, and who may be of use again."""

    @property
    def aids(self) -> dict[str, nn.Module]:
        """Bare networks that are no students, by name."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training gives.

    Attributes:
        last_state: State dict of the student after the last step, on the CPU; of several networks that may
            be the student, the one best by validation then.
        best_state: The same after the epoch with the best validation metric.
        best_epoch: That epoch, counted from 1.
        history: One row an epoch.
        networks: State dicts of all networks by name, the student's as it was selected.
        chosen: Name of the network that was selected.
        steps: Steps taken in all.
        seconds: Time spent in steps, resumed parts included.
        samples_per_second: Training samples over that time.
        interrupted: The user stopped it; the last checkpoint holds everything.
        weights: Those of terms at ``auto``, as they were chosen.
        aids: Networks that are no students, as they were after the last step, by name.
    """

    last_state: State
    best_state: State
    best_epoch: int
    history: list[dict[str, float]]
    networks: dict[str, State]
    chosen: str
    steps: int
    seconds: float
    samples_per_second: float
    interrupted: bool
    weights: dict[str, float] = field(default_factory=dict)
    aids: Mapping[str, nn.Module] = field(default_factory=dict)
