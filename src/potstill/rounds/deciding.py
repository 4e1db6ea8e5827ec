"""What goes from a network of a run: scores, plans that meet the budget, trials of the best of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.cells import Cell, Finished
from potstill.experiment import Experiment
from potstill.files import read_json, write_json
from potstill.folder import RunFolder
from potstill.models.weights import fingerprint
from potstill.prune import Plan, PruneConfig, Structure
from potstill.prune.candidates import Candidate, choose
from potstill.prune.choice import Chooser
from potstill.prune.gauge import Gauge
from potstill.prune.importance import block_scores, mean_loss, unit_scores
from potstill.prune.masks import hold, weight_masks
from potstill.prune.settling import settled
from potstill.prune.store import Scores, stored
from potstill.prune.surgery import structure_of, usual_axes
from potstill.rounds.calibration import Calibration, repeated
from potstill.train import TrainConfig

__all__ = ["Decider", "TrainOne", "decided", "plan_of", "starting_from"]

TrainOne = Callable[[Experiment, Cell, RunFolder, str], Finished | None]
"""Trains one cell, told under a title; ``None`` if the user interrupted it."""


MAGNITUDE = (
    "prune.importance: magnitude is there to compare with, and misjudges language models: without a tenth of "
    "its width SmolLM2-135M had perplexity 7,775 by magnitude, 36 by activation"
)


def starting_from(experiment: Experiment, start: nn.Module) -> Experiment:
    """``experiment`` whose students are copies of ``start``."""
    start = copy.deepcopy(start).to("cpu")
    return replace(experiment, fresh=lambda: copy.deepcopy(start))


@dataclass
class Decider:
    """Chooses what goes from networks of one run.

    Attributes:
        experiment: The loaded recipe; its student is the whole network with its weights.
        config: Its ``prune`` section.
        folder: The run's.
        train_one: Trains a cell.
        echo: Where lines of text go.
    """

    experiment: Experiment
    config: PruneConfig
    folder: RunFolder
    train_one: TrainOne
    echo: Callable[[str], None]

    @cached_property
    def original(self) -> nn.Module:
        """The network before anything is removed."""
        return self.experiment.fresh().to(self.experiment.device).eval()

    @cached_property
    def axes(self) -> Sequence[Any]:
        """What may go."""
        return self.config.axes or usual_axes(self.original)

    @cached_property
    def losses(self) -> Calibration:
        """What networks lose on the calibration samples."""
        return Calibration(self.experiment, self.config.calibration)

    @cached_property
    def structure(self) -> Structure:
        """What may go from the original."""
        found = structure_of(self.original, self.experiment.example().input("student"), self.axes)
        for note in (*found.notes, *([MAGNITUDE] if self._by_magnitude and found.family else [])):
            self.echo(f"note: {note}")
        return found

    @property
    def _by_magnitude(self) -> bool:
        return self.config.importance == "magnitude" and set(self.axes) != {"layers"}

    @cached_property
    def gauge(self) -> Gauge:
        """What networks cost; made once, as it times the original."""
        experiment, target = self.experiment, self.config.target
        assert target is not None, "without a target no parts go"
        one = experiment.task.one_input("student", experiment.splits.train)
        inputs = experiment.example().tensor("student") if isinstance(one, tuple) else one
        batch = self.config.latency_batch if target.quantity == "latency" else 1
        return Gauge.of(target, self.original, repeated(inputs, batch), self._blocks_of)

    def _blocks_of(self, model: nn.Module) -> Sequence[str]:
        """Paths of the blocks of what is left of the original."""
        if self.structure.family:
            return structure_of(model, {}, ["layers"]).blocks
        return self.structure.blocks

    def least(self) -> float:
        """The smallest size that the axes allow.

        Raises:
            UserError: If that is above the target.
        """
        groups, blocks = self.structure.groups, self.structure.blocks
        even = Scores({group.name: torch.zeros(group.units) for group in groups}, dict.fromkeys(blocks, 0.0))
        chooser = Chooser(self.original, self.structure, even, self.gauge, self.config)
        return chooser.least(self.gauge.goal)

    def scores(self, model: nn.Module, structure: Structure) -> Scores:
        """What every part of ``model`` matters, computed once."""
        config = self.config
        key = {
            "model": fingerprint(model),
            "importance": config.importance,
            "layer_importance": config.layer_importance,
            "axes": ",".join(self.axes),
            "calibration": f"{config.calibration} of {len(self.experiment.splits.train)}",
            "data": str(self.experiment.recipe.data),
            "samples": self.experiment.splits.train.fingerprint(),  # as tokens, of texts
        }
        kept = Path(config.scores) if config.scores else self.folder.importance

        def compute() -> Scores:
            return Scores(
                unit_scores(model, structure.groups, self.losses, config.importance),
                block_scores(model, structure, self.losses, config.layer_importance),
            )

        return stored(kept, key, compute)

    def decide(
        self, model: nn.Module, structure: Structure, budget: float, place: RunFolder, title: str
    ) -> dict[str, Any] | None:
        """The candidates for ``model``, the chosen one first; ``None`` if the user interrupted a trial.

        Args:
            model: The network.
            structure: What may go from it.
            budget: What is left may cost.
            place: Where trials are kept.
            title: Begins the lines of text.

        Raises:
            UserError: If no network that was measured meets the budget.
        """
        gauge = self.gauge
        self.echo(f"{title}: scoring")
        scores = self.scores(model, structure)
        chooser = Chooser(model.eval(), structure, scores, gauge, self.config, self.structure)
        try:
            found = choose(chooser, budget, self.losses, partial(self._tried, place))
        except _InterruptedError:
            return None
        best = found[0]
        self.echo(
            f"{title}: {gauge.written(best.cost)} of {gauge.written(gauge.whole)} "
            f"({best.cost / gauge.whole:.1%}), {len(best.plan.blocks)} blocks and "
            f"{sum(map(len, best.plan.units.values()))} units go; best of {len(found)} candidates"
        )
        return {
            "quantity": gauge.quantity,
            "whole": gauge.whole,
            "target": gauge.goal,
            "budget": budget,
            "cost": best.cost,
            "loss_before": mean_loss(model.eval(), self.losses),
            "candidates": [candidate.row() for candidate in found],
            "flipped": _flipped(found),
        }

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Which single weights of ``model`` are kept."""
        config = self.config
        assert config.weights is not None, "asked where single weights go"
        return weight_masks(model, config.weights, self.losses, config.weight_importance)

    def weighed(self, model: nn.Module) -> dict[str, Any]:
        """The one candidate of a run in which single weights go, and no parts."""
        masks, small = self.weights(model), copy.deepcopy(model).eval()
        hold(small, masks)
        kept = sum(int(mask.sum()) for mask in masks.values())
        whole = sum(mask.numel() for mask in masks.values())
        self.echo(f"{whole - kept:,} of {whole:,} weights of layers become zero")
        loss = mean_loss(settled(small, self.losses), self.losses)
        return {
            "quantity": "weights",
            "whole": whole,
            "target": kept,
            "budget": kept,
            "cost": kept,
            "loss_before": mean_loss(model.eval(), self.losses),
            "candidates": [Candidate(Plan(), kept, loss).row()],
            "flipped": False,
        }

    def _tried(self, place: RunFolder, number: int, model: nn.Module) -> float:
        """The calibration loss of a candidate after a short distillation."""
        folder = RunFolder(place.path / "trials" / str(number + 1))
        train = replace(self.experiment.recipe.train, steps=self.config.trial_steps, warmup=0.3)
        cell = Cell("student", self.experiment.recipe.seed)
        done = self.trained(cell, model, folder, f"candidate {number + 1}", train)
        if done is None:
            raise _InterruptedError
        return mean_loss(done.load(copy.deepcopy(model), "last"), self.losses)

    def length(self, share: float) -> TrainConfig:
        """The recipe's training, a share of it long."""
        train = self.experiment.recipe.train
        steps = None if train.steps is None else max(1, round(train.steps * share))
        return replace(train, epochs=train.epochs * share, steps=steps)

    def trained(
        self,
        cell: Cell,
        start: nn.Module,
        place: RunFolder,
        title: str,
        train: TrainConfig,
        *,
        held: bool = False,
    ) -> Finished | None:
        """A cell whose network starts as ``start``, trained as ``train`` says; ``None`` if interrupted.

        With ``held`` what is zero in it stays zero.
        """
        place.path.mkdir(parents=True, exist_ok=True)
        experiment = replace(starting_from(self.experiment, start), held=held)
        recipe = replace(experiment.recipe, train=train)
        return self.train_one(replace(experiment, recipe=recipe), cell, place, title)


def decided(place: RunFolder, decide: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
    """The choice that ``round.json`` in ``place`` holds from before an interruption, or a new one."""
    record: Path = place.path / "round.json"
    if not record.is_file():
        row = decide()
        if row is None:
            return None
        write_json(record, row)
    return read_json(record)


def plan_of(row: Mapping[str, Any]) -> Plan:
    """What was chosen in a round."""
    chosen = row["candidates"][0]
    return Plan(tuple(chosen["blocks"]), {name: tuple(units) for name, units in chosen["units"].items()})


class _InterruptedError(Exception):
    """The user interrupted a trial."""


def _flipped(found: list[Candidate]) -> bool:
    """Whether a short training changed which candidate is best."""
    return found[0].loss > min(candidate.loss for candidate in found)
