"""Prune, distil, repeat: the rounds of a run whose student is the teacher with parts removed.

Each round scores the network, chooses what goes, removes it and trains what is left; the teacher stays the
untouched original. Control and further seeds lose the same parts and are trained as long. A round's folder
holds ``round.json`` (the choice), ``architecture.json`` and the cells, so that an interrupted run goes on in
the round and at the step where it was, and every round's network can be loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill import distributed
from potstill.calibration import Calibration, repeated
from potstill.cells import Cell, Finished
from potstill.errors import UserError
from potstill.experiment import Arm, Experiment
from potstill.files import read_json, write_json
from potstill.folder import RunFolder
from potstill.models.architecture import Architecture
from potstill.models.weights import fingerprint
from potstill.prune import Plan, PruneConfig, Structure
from potstill.prune.choice import Candidate, Chooser, choose
from potstill.prune.gauge import Gauge
from potstill.prune.importance import block_scores, mean_loss, unit_scores
from potstill.prune.store import Scores, stored
from potstill.prune.surgery import cut, structure_left, structure_of, usual_axes
from potstill.shapes import round_place

__all__ = ["ARMS", "Pruned", "Rounds", "TrainOne"]

ARMS: tuple[Arm, ...] = ("student", "control")
"""What is to go is decided with the student, so it comes first."""

TrainOne = Callable[[Experiment, Cell, RunFolder, str], Finished | None]
"""Trains one cell, told under a title; ``None`` if the user interrupted it."""


@dataclass(frozen=True)
class Pruned:
    """What the rounds led to.

    Attributes:
        experiment: The recipe with the pruned student.
        cells: The last round's cells.
        figures: For ``result.json``: the target and a row for each round.
        start: The network of the last round's shape before any training: the original with all parts gone.
    """

    experiment: Experiment
    cells: list[Finished]
    figures: dict[str, Any]
    start: nn.Module


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
        self.experiment, self.folder, self.train_one, self.echo = experiment, folder, train_one, echo
        self.config: PruneConfig = experiment.recipe.prune
        self.original = self.start = experiment.fresh().to(experiment.device).eval()
        self.axes = self.config.axes or usual_axes(self.original)
        self.losses = Calibration(experiment, self.config.calibration)
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
        self._structure: Structure | None = None
        self._all_blocks: tuple[str, ...] = ()
        self._gauge: Gauge | None = None

    def check(self) -> str:
        """What is aimed at, in words; nothing is written or trained.

        Raises:
            UserError: If the target cannot be met or told from noise, or there are several processes.
        """
        if distributed.world_size() > 1:
            raise UserError("prune", f"runs in one process, got {distributed.world_size()}")
        structure = self.structure()
        gauge = self.gauge()
        even = Scores(
            {group.name: torch.zeros(group.units) for group in structure.groups},
            dict.fromkeys(structure.blocks, 0.0),
        )
        least = Chooser(self.original, structure, even, gauge, self.config).least(gauge.goal)
        units = sum(group.units for group in structure.groups)
        return (
            f"prune: {gauge.quantity} from {gauge.whole:,.4g} to {gauge.goal:,.4g} in "
            f"{self.config.steps} round(s); "
            f"{len(structure.blocks)} blocks and {units} units may go, to {least:,.4g} at most"
        )

    def run(self) -> Pruned | None:
        """All rounds, or what is left of them; ``None`` if the user interrupted.

        Raises:
            UserError: If no network that was measured meets the target.
        """
        for number in range(1, self.config.steps + 1):
            if not self.round(number):
                return None
        self.architecture.save(self.folder.architecture)
        return Pruned(self.current(), self.finished, self.figures(), self.start)

    # What is looked at ----------------------------------------------------------------------------

    @property
    def leader(self) -> nn.Module:
        """The network that choices are made with: the first seed's student."""
        return self.models[self.plan_of_cells[0]]

    @property
    def architecture(self) -> Architecture:
        """How the networks now differ from the original."""
        return Architecture.between(self.original, self.leader)

    def current(self) -> Experiment:
        """The recipe with a student of the present shape."""
        return self._from(self.leader)

    def _from(self, start: nn.Module) -> Experiment:
        start = copy.deepcopy(start).to("cpu")
        return replace(self.experiment, fresh=lambda: copy.deepcopy(start))

    def gauge(self) -> Gauge:
        """What networks cost; made once, as it times the original."""
        if self._gauge is None:
            experiment, target = self.experiment, self.config.target
            inputs = experiment.task.one_input("student", experiment.splits.train)
            if isinstance(inputs, tuple):
                inputs = experiment.example().tensor("student")
            batch = self.config.latency_batch if target.quantity == "latency" else 1
            self._gauge = Gauge.of(target, self.original, repeated(inputs, batch), self._blocks_of)
        return self._gauge

    def _blocks_of(self, model: nn.Module) -> Sequence[str]:
        """Paths of the blocks of what is left of the original."""
        if self.structure().family:
            return structure_of(model, {}, ["layers"]).blocks
        return self._all_blocks

    def structure(self) -> Structure:
        """What may go from the present network."""
        if self._structure is None:
            example = self.experiment.example().input("student")
            self._structure = structure_of(self.original, example, self.axes)
            self._all_blocks = self._structure.blocks
            for note in self._structure.notes:
                self.echo(f"note: {note}")
        return self._structure

    # A round --------------------------------------------------------------------------------------

    def round(self, number: int) -> bool:
        """One round; ``False`` if the user interrupted it."""
        place = round_place(self.folder, number)
        record = place.path / "round.json"
        if not record.is_file():
            row = self._decided(number, place)
            if row is None:
                return False
            write_json(record, row)
        row = read_json(record)
        plan = _plan(row["candidates"][0])
        structure = self.structure()
        before = self.leader
        self.start = cut(self.start, plan, structure)
        self.models = {cell: cut(model, plan, structure) for cell, model in self.models.items()}
        self._structure = structure_left(before, plan, structure, self.leader, self.axes)
        self.architecture.save(place.architecture)
        length = replace(self.experiment.recipe.train, **self._length(number))
        self.finished = []
        for cell in self.plan_of_cells:
            title = f"round {number}/{self.config.steps} {cell.name}"
            done = self._trained(cell, self.models[cell], place, title, length)
            if done is None:
                return False
            self.finished.append(done)
            self.models[cell] = done.load(
                copy.deepcopy(self.models[cell]), self.experiment.recipe.train.select
            )
        self.rows.append({**row, **self._outcome()})
        return True

    def _length(self, number: int) -> dict[str, Any]:
        """How long a round is trained, as settings of ``train``."""
        train, share = (
            self.experiment.recipe.train,
            1.0 if number == self.config.steps else self.config.between,
        )
        return {
            "epochs": train.epochs * share,
            "steps": None if train.steps is None else max(1, round(train.steps * share)),
        }

    def _trained(
        self, cell: Cell, start: nn.Module, place: RunFolder, title: str, train: Any
    ) -> Finished | None:
        place.path.mkdir(parents=True, exist_ok=True)
        experiment = self._from(start)
        recipe = replace(experiment.recipe, train=train)
        return self.train_one(replace(experiment, recipe=recipe), cell, place, title)

    # A choice -------------------------------------------------------------------------------------

    def _decided(self, number: int, place: RunFolder) -> dict[str, Any] | None:
        """The candidates of a round, the chosen one first; ``None`` if the user interrupted a trial."""
        structure = self.structure()
        gauge = self.gauge()
        budget = gauge.whole * (gauge.goal / gauge.whole) ** (number / self.config.steps)
        self.echo(f"round {number}/{self.config.steps}: scoring")
        scores = self._scores(structure)
        chooser = Chooser(self.leader.eval(), structure, scores, gauge, self.config)
        try:
            found = choose(chooser, budget, self.losses, partial(self._tried, place))
        except _InterruptedError:
            return None
        best = found[0]
        self.echo(
            f"round {number}/{self.config.steps}: {gauge.quantity} {best.cost:,.4g} of {gauge.whole:,.4g} "
            f"({best.cost / gauge.whole:.1%}), {len(best.plan.blocks)} blocks and "
            f"{sum(map(len, best.plan.units.values()))} units go; best of {len(found)} candidates"
        )
        return {
            "round": number,
            "quantity": gauge.quantity,
            "whole": gauge.whole,
            "target": gauge.goal,
            "budget": budget,
            "cost": best.cost,
            "loss_before": mean_loss(self.leader.eval(), self.losses),
            "candidates": [candidate.row() for candidate in found],
            "flipped": _flipped(found),
        }

    def _scores(self, structure: Structure) -> Scores:
        config = self.config
        key = {
            "model": fingerprint(self.leader),
            "importance": config.importance,
            "layer_importance": config.layer_importance,
            "axes": ",".join(self.axes),
            "calibration": f"{config.calibration} of {len(self.experiment.splits.train)}",
            "data": str(self.experiment.recipe.data),
        }
        kept = Path(config.scores) if config.scores else self.folder.path / "scores"

        def compute() -> Scores:
            return Scores(
                unit_scores(self.leader, structure.groups, self.losses, config.importance),
                block_scores(self.leader, structure, self.losses, config.layer_importance),
            )

        return stored(kept, key, compute)

    def _tried(self, place: RunFolder, number: int, model: nn.Module) -> float:
        """The calibration loss of a candidate after a short distillation."""
        folder = RunFolder(place.path / "trials" / str(number + 1))
        train = replace(self.experiment.recipe.train, steps=self.config.trial_steps, warmup=0.3)
        cell = self.plan_of_cells[0]
        done = self._trained(cell, model, folder, f"candidate {number + 1}", train)
        if done is None:
            raise _InterruptedError
        return mean_loss(done.load(copy.deepcopy(model), "last"), self.losses)

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


class _InterruptedError(Exception):
    """The user interrupted a trial."""


def _plan(row: dict[str, Any]) -> Plan:
    return Plan(tuple(row["blocks"]), {name: tuple(units) for name, units in row["units"].items()})


def _flipped(found: list[Candidate]) -> bool:
    """Whether a short training changed which candidate is best."""
    return found[0].loss > min(candidate.loss for candidate in found)
