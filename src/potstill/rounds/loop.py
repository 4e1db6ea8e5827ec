"""Prune, distil, repeat: the rounds of a run whose student is the teacher with parts removed.

Each round scores the network, chooses what goes, removes it and trains what is left; the teacher stays the
untouched original. Control and further seeds lose the same parts and are trained as long. A round's folder
holds ``round.json`` (the choice), ``architecture.json`` and the cells, so that an interrupted run goes on in
the round and at the step where it was, and every round's network can be loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from potstill import distributed
from potstill.cells import Cell, Finished
from potstill.errors import UserError
from potstill.experiment import Arm, Experiment
from potstill.folder import RunFolder
from potstill.models.architecture import Architecture
from potstill.prune import PruneConfig, Structure
from potstill.prune.masks import hold, nonzero, weight_masks
from potstill.prune.settling import settled
from potstill.prune.surgery import check_renewable, cut, structure_left
from potstill.rounds.deciding import Decider, TrainOne, decided, plan_of, starting_from
from potstill.rounds.rivals import Rival, compete
from potstill.rounds.shapes import round_place

__all__ = ["ARMS", "Pruned", "Rounds"]

ARMS: tuple[Arm, ...] = ("student", "control")
"""What is to go is decided with the student, so it comes first."""


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
        if experiment.task.supervised is None:
            raise UserError("prune", "needs training data with labels, as losses on them say what may go")
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
            UserError: If the target cannot be met or told from noise, a rival cannot be made, or there are
                several processes.
        """
        if distributed.world_size() > 1:
            raise UserError("prune", f"runs in one process, got {distributed.world_size()}")
        if self.config.weights is not None:
            masks = weight_masks(copy.deepcopy(self.original).to("meta"), self.config.weights)
            if self.config.target is None:
                return f"prune: single weights of {len(masks)} layers become zero ({self.config.weights})"
        if "scratch" in self.config.rivals:
            check_renewable(self.original)
        self.structure = self.decider.structure
        gauge, least = self.decider.gauge, self.decider.least()
        units = sum(group.units for group in self.structure.groups)
        return (
            f"prune: {gauge.written(gauge.whole)} are to become {gauge.written(gauge.goal)} in "
            f"{self.config.steps} round(s); {len(self.structure.blocks)} blocks and {units} units may go, "
            f"to {gauge.written(least)} at most"
        )

    def run(self) -> Pruned | None:
        """All rounds, or what is left of them; ``None`` if the user interrupted.

        Raises:
            UserError: If no network that was measured meets the target.
        """
        self.structure = Structure() if self.config.target is None else self.decider.structure
        for number in range(1, self.config.rounds + 1):
            if not self.round(number):
                return None
        self.architecture.save(self.folder.architecture)
        rivals: dict[str, Rival] = {}
        seeds = [cell.seed for cell in self.plan_of_cells if cell.arm == "student"]
        for name in self.config.rivals:
            rival = compete(name, self.decider, self.leader, seeds)
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
        title, place = f"round {number}/{self.config.rounds}", round_place(self.folder, number)
        row = self._decided(number, place, title)
        if row is None:
            return False
        plan, before, structure = plan_of(row), self.leader, self.structure
        self.start = cut(self.start, plan, structure)
        self.models = {cell: cut(model, plan, structure) for cell, model in self.models.items()}
        last = number == self.config.rounds
        if not last:
            self.structure = structure_left(before, plan, structure, self.leader, self.decider.axes)
        self.architecture.save(place.architecture)
        held = last and self.config.weights is not None
        if held:
            self._lose_weights()
        length = self.decider.length(1.0 if last else self.config.between)
        self.finished = []
        for cell in self.plan_of_cells:
            start, name = self.models[cell], f"{title} {cell.name}"
            done = self.decider.trained(cell, start, place, name, length, held=held)
            if done is None:
                return False
            self.finished.append(done)
            self.models[cell] = self._loaded(done, self.models[cell])
        self.rows.append({**row, **self._outcome()})
        return True

    def _lose_weights(self) -> None:
        """The same single weights of all networks become zero."""
        masks = self.decider.weights(self.leader)
        for model in (self.start, *self.models.values()):
            for handle in hold(model, masks):
                handle.remove()

    def _decided(self, number: int, place: RunFolder, title: str) -> dict[str, Any] | None:
        """The choice of a round, made now or before an interruption."""
        if self.config.target is None:
            found = decided(place, lambda: self.decider.weighed(self.leader))
        else:
            gauge = self.decider.gauge
            budget = gauge.whole * (gauge.goal / gauge.whole) ** (number / self.config.rounds)
            found = decided(
                place, lambda: self.decider.decide(self.leader, self.structure, budget, place, title)
            )
        return None if found is None else {"round": number, **found}

    def _loaded(self, done: Finished, shape: nn.Module) -> nn.Module:
        return done.load(copy.deepcopy(shape), self.experiment.recipe.train.select)

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
        target = self.config.target
        name, value = ("weights", self.config.weights) if target is None else target.given
        first = self.rows[0]
        return {
            "target": {"key": name, "value": value, "absolute": first["target"], "whole": first["whole"]},
            "quantity": first["quantity"],
            "reached": self.rows[-1]["cost"],
            "rounds": self.rows,
            **({} if self.config.weights is None else {"zeros": self._zeros()}),
        }

    def _zeros(self) -> dict[str, Any]:
        """Single weights of the student that are zero, counted after training."""
        layers = list(nonzero(self.leader).values())
        whole = sum(mask.numel() for mask in layers)
        return {
            "pattern": self.config.weights,
            "importance": self.config.weight_importance,
            "count": whole - sum(int(mask.sum()) for mask in layers),
            "of": whole,
        }
