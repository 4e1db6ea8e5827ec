"""Other students of the size that rounds of pruning led to, trained as long by the same teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from potstill.cells import Cell, Finished
from potstill.experiment import Experiment
from potstill.folder import RunFolder
from potstill.models.architecture import Architecture
from potstill.prune.surgery import cut, untrained
from potstill.rounds.deciding import Decider, decided, plan_of, starting_from

__all__ = ["Rival", "compete"]


@dataclass(frozen=True)
class Rival:
    """Students of the final size that came about otherwise.

    Attributes:
        experiment: The recipe with a student of their shape.
        cells: One a seed.
    """

    experiment: Experiment
    cells: list[Finished]


def compete(
    name: Literal["scratch", "one_shot"], decider: Decider, small: nn.Module, seeds: Sequence[int]
) -> Rival | None:
    """Train a rival, or find it trained.

    Args:
        name: ``scratch`` for fresh weights, ``one_shot`` for all parts gone in one removal.
        decider: Of the run.
        small: The network that the rounds led to.
        seeds: Of the run's students.

    Returns:
        The rival; ``None`` if the user interrupted it.

    Raises:
        UserError: If ``small`` has weights that no module of it knows how to begin.
    """
    place = RunFolder(decider.folder.path / "rivals" / name)
    if name == "scratch":
        return _trained(name, decider, place, {seed: untrained(small, seed) for seed in seeds})
    structure, goal = decider.structure, decider.gauge.goal
    row = decided(place, lambda: decider.decide(decider.original, structure, goal, place, "one shot"))
    if row is None:
        return None
    once = cut(decider.original, plan_of(row), structure)
    Architecture.between(decider.original, once).save(place.architecture)
    return _trained(name, decider, place, dict.fromkeys(seeds, once))


def _trained(name: str, decider: Decider, place: RunFolder, starts: Mapping[int, nn.Module]) -> Rival | None:
    """As long as all rounds together."""
    length = decider.length(1.0 + decider.config.between * (decider.config.steps - 1))
    cells = []
    for seed, start in starts.items():
        title = f"{name.replace('_', ' ')} student-{seed}"
        done = decider.trained(Cell("student", seed), start, place, title, length)
        if done is None:
            return None
        cells.append(done)
    return Rival(starting_from(decider.experiment, next(iter(starts.values()))), cells)
