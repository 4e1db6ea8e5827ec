"""Students of a run that prunes: as it ended, after one of its rounds, or the largest of a given size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from potstill.cells import Cell
from potstill.config import Recipe
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.folder import RunFolder
from potstill.models.architecture import Architecture

__all__ = ["of_round", "round_at_size", "round_place", "shaped"]


def shaped(experiment: Experiment, folder: RunFolder) -> Experiment:
    """``experiment`` whose student has the shape that its finished run in ``folder`` gave it."""
    if not folder.architecture.is_file():
        return experiment
    fresh, architecture = experiment.fresh, Architecture.load(folder.architecture)
    return replace(experiment, fresh=lambda: architecture.applied(fresh()))


def of_round(folder: RunFolder, number: int | None, recipe: Recipe) -> tuple[RunFolder, Path]:
    """Where the architecture of a round lies, and the weights of its first student.

    Args:
        folder: The run's.
        number: The round, from 1; ``None`` for the run's own student.
        recipe: The run's.

    Raises:
        UserError: If there is no such round.
    """
    if number is None:
        return folder, folder.student
    steps = 0 if recipe.prune is None else recipe.prune.rounds
    if not 1 <= number <= steps:
        known = ", ".join(map(str, range(1, steps + 1))) or "none, as nothing was pruned"
        raise UserError("round", f"expected one of {known}, got {number}")
    place = round_place(folder, number)
    return place, place.cell(Cell("student", recipe.seed).name) / f"{recipe.train.select}.safetensors"


def round_place(folder: RunFolder, number: int) -> RunFolder:
    """Where a round keeps its choice and its cells."""
    return RunFolder(folder.path / "rounds" / str(number))


def round_at_size(folder: RunFolder, size: float) -> int:
    """The round that left the largest student of at most ``size``.

    Args:
        folder: The run's.
        size: In the unit of the run's target (tokens a second: at least as many); up to 1 a share of the
            original's size or time.

    Raises:
        UserError: If nothing was pruned, or no round got that small.
    """
    found = folder.read_result().get("prune")
    if found is None:
        raise UserError("--at-size", "has no meaning: nothing was pruned in this run")
    target, unit = found["target"], "ms" if found["quantity"] == "latency" else found["quantity"]
    most = size * target["whole"] if size <= 1 else size
    if size > 1 and target["key"] == "tokens_per_second":
        most = target["absolute"] * target["value"] / size
    fitting = [row for row in found["rounds"] if row["cost"] <= most]
    if not fitting:
        sizes = ", ".join(f"{row['cost']:g}" for row in found["rounds"])
        raise UserError("--at-size", f"no round got to {most:g} {unit}; there are {sizes}")
    return int(max(fitting, key=lambda row: row["cost"])["round"])
