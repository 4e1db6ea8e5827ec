"""Prune, distil, repeat: the rounds of a run whose student is the teacher with parts removed.

Each round scores the network, chooses what goes, removes it and trains what is left; the teacher stays the
untouched original. Control and further seeds lose the same parts and are trained as long. A round's folder
holds ``round.json`` (the choice), ``architecture.json`` and the cells, so that an interrupted run goes on in
the round and at the step where it was, and every round's network can be loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from potstill import distributed
from potstill.cells import Cell, Finished
from potstill.deciding import Decider, TrainOne, starting_from
from potstill.errors import UserError
from potstill.experiment import Arm, Experiment
from potstill.files import read_json, write_json
from potstill.folder import RunFolder
from potstill.models.architecture import Architecture
from potstill.prune import Plan, PruneConfig
from potstill.prune.settling import settled
from potstill.prune.surgery import cut, structure_left, untrained
from potstill.shapes import round_place
from potstill.train import TrainConfig

__all__ = ["ARMS", "Pruned", "Rival", "Rounds"]

ARMS: tuple[Arm, ...] = ("student", "control")
"""What is to go is decided with the student, so it comes first."""


@dataclass(frozen=True)
class Rival:
    """Students of the final size that came about otherwise.

    Attributes:
        experiment: The recipe with a student of their shape.
        cells: One a seed.
    """

    experiment: Experiment
    cells: list[Finished]


@dataclass(frozen=True)
class Pruned:
    """What the rounds led to.

    Attributes:
        experiment: The recipe with the pruned student.
        cells: The last round's cells.
        figures: For ``result.json``: the target and a row for each round.
        start: The network of the last round's shape before any training: the original with all parts gone.
        rivals: By name, ``scratch`` and ``one_shot``, where the recipe asks for them.
    """

    experiment: Experiment
    cells: list[Finished]
    figures: dict[str, Any]
    start: nn.Module
    rivals: Mapping[str, Rival] = field(default_factory=dict)


class Rounds:
    """The rounds of a run; what lies between them is read from their folders again after an interruption.

    Args:
        experiment: The loaded recipe; its student is the whole network with its weights.
        folder: The run's.
        train_one: Trains a cell.
        control: Also train the same pruned networks from labels alone.
        echo: Where lines of text go.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        train_one: TrainOne,
        *,
        control: bool,
        echo: Callable[[str], None],
    ) -> None:
        assert experiment.recipe.prune is not None, "only a recipe with prune has rounds"
        self.experiment, self.folder = experiment, folder
        self.config: PruneConfig = experiment.recipe.prune
        self.decider = Decider(experiment, self.config, folder, train_one, echo)
        self.original = self.start = self.decider.original
        recipe = experiment.recipe
        self.plan_of_cells = [
            Cell(arm, recipe.seed + number)
            for number in range(recipe.seeds)
            for arm in ARMS
            if control or arm == "student"
        ]
        self.models = dict.fromkeys(self.plan_of_cells, self.original)
        self.finished: list[Finished] = []
        self.rows: list[dict[str, Any]] = []

    def check(self) -> str:
        """What is aimed at, in words; nothing is written or trained.

        Raises:
            UserError: If the target cannot be met or told from noise, or there are several processes.
        """
        if distributed.world_size() > 1:
            raise UserError("prune", f"runs in one process, got {distributed.world_size()}")
        self.structure = self.decider.structure
        gauge, least = self.decider.gauge, self.decider.least()
        units = sum(group.units for group in self.structure.groups)
        return (
            f"prune: {gauge.quantity} from {gauge.whole:,.4g} to {gauge.goal:,.4g} in "
            f"{self.config.steps} round(s); "
            f"{len(self.structure.blocks)} blocks and {units} units may go, to {least:,.4g} at most"
        )

    def run(self) -> Pruned | None:
        """All rounds, or what is left of them; ``None`` if the user interrupted.

        Raises:
            UserError: If no network that was measured meets the target.
        """
        self.structure = self.decider.structure
        for number in range(1, self.config.steps + 1):
            if not self.round(number):
                return None
        self.architecture.save(self.folder.architecture)
        rivals: dict[str, Rival] = {}
        for name in self.config.rivals:
            rival = self._scratch() if name == "scratch" else self._one_shot()
            if rival is None:
                return None
            rivals[name] = rival
        start = settled(self.start, self.decider.losses)
        current = starting_from(self.experiment, self.leader)
        return Pruned(current, self.finished, self.figures(), start, rivals)

    @property
    def leader(self) -> nn.Module:
        """The network that choices are made with: the first seed's student."""
        return self.models[self.plan_of_cells[0]]

    @property
    def architecture(self) -> Architecture:
        """How the networks now differ from the original."""
        return Architecture.between(self.original, self.leader)

    # A round --------------------------------------------------------------------------------------

    def round(self, number: int) -> bool:
        """One round; ``False`` if the user interrupted it."""
        title, place = f"round {number}/{self.config.steps}", round_place(self.folder, number)
        row = self._decided(number, place, title)
        if row is None:
            return False
        plan, before, structure = _plan(row["candidates"][0]), self.leader, self.structure
        self.start = cut(self.start, plan, structure)
        self.models = {cell: cut(model, plan, structure) for cell, model in self.models.items()}
        self.structure = structure_left(before, plan, structure, self.leader, self.decider.axes)
        self.architecture.save(place.architecture)
        length = self._length(1.0 if number == self.config.steps else self.config.between)
        self.finished = []
        for cell in self.plan_of_cells:
            done = self.decider.trained(cell, self.models[cell], place, f"{title} {cell.name}", length)
            if done is None:
                return False
            self.finished.append(done)
            self.models[cell] = self._loaded(done, self.models[cell])
        self.rows.append({**row, **self._outcome()})
        return True

    def _decided(self, number: int, place: RunFolder, title: str) -> dict[str, Any] | None:
        """The choice of a round, made now or before an interruption."""
        gauge = self.decider.gauge
        budget = gauge.whole * (gauge.goal / gauge.whole) ** (number / self.config.steps)
        found = self._kept(
            place, lambda: self.decider.decide(self.leader, self.structure, budget, place, title)
        )
        return None if found is None else {"round": number, **found}

    @staticmethod
    def _kept(place: RunFolder, decide: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        record: Path = place.path / "round.json"
        if not record.is_file():
            row = decide()
            if row is None:
                return None
            write_json(record, row)
        return read_json(record)

    def _length(self, share: float) -> TrainConfig:
        """The recipe's training, a share of it long."""
        train = self.experiment.recipe.train
        steps = None if train.steps is None else max(1, round(train.steps * share))
        return replace(train, epochs=train.epochs * share, steps=steps)

    def _loaded(self, done: Finished, shape: nn.Module) -> nn.Module:
        return done.load(copy.deepcopy(shape), self.experiment.recipe.train.select)

    # Rivals ---------------------------------------------------------------------------------------

    def _scratch(self) -> Rival | None:
        """Students of the final shape with fresh weights."""
        return self._rival("scratch", {seed: untrained(self.leader, seed) for seed in self._seeds()})

    def _one_shot(self) -> Rival | None:
        """Students that lost everything in one removal."""
        place = RunFolder(self.folder.path / "rivals" / "one_shot")
        structure, goal = self.decider.structure, self.decider.gauge.goal
        row = self._kept(
            place, lambda: self.decider.decide(self.original, structure, goal, place, "one shot")
        )
        if row is None:
            return None
        small = cut(self.original, _plan(row["candidates"][0]), structure)
        Architecture.between(self.original, small).save(place.architecture)
        return self._rival("one_shot", dict.fromkeys(self._seeds(), small))

    def _seeds(self) -> list[int]:
        return [cell.seed for cell in self.plan_of_cells if cell.arm == "student"]

    def _rival(self, name: str, starts: Mapping[int, nn.Module]) -> Rival | None:
        """Trained as long as all rounds together, by the same teacher."""
        place = RunFolder(self.folder.path / "rivals" / name)
        length = self._length(1.0 + self.config.between * (self.config.steps - 1))
        cells = []
        for seed, start in starts.items():
            title = f"{name.replace('_', ' ')} student-{seed}"
            done = self.decider.trained(Cell("student", seed), start, place, title, length)
            if done is None:
                return None
            cells.append(done)
        return Rival(starting_from(self.experiment, next(iter(starts.values()))), cells)

    # What is told ---------------------------------------------------------------------------------

    def _outcome(self) -> dict[str, Any]:
        """Validation figures of the round's cells."""
        metric = self.experiment.task.metric
        arms = {
            arm: [done.history[-1].get(metric) for done in self.finished if done.cell.arm == arm]
            for arm in ARMS
        }
        return {"validation": {arm: values for arm, values in arms.items() if values}}

    def figures(self) -> dict[str, Any]:
        """The rounds and what was aimed at, for ``result.json``."""
        name, value = self.config.target.given
        first = self.rows[0]
        return {
            "target": {"key": name, "value": value, "absolute": first["target"], "whole": first["whole"]},
            "quantity": first["quantity"],
            "reached": self.rows[-1]["cost"],
            "rounds": self.rows,
        }


def _plan(row: dict[str, Any]) -> Plan:
    return Plan(tuple(row["blocks"]), {name: tuple(units) for name, units in row["units"].items()})
