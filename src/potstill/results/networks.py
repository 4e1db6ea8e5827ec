"""What trained networks answer on the test part, each computed once: cells, peers, generations, exits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from potstill.cells import Finished, Which
from potstill.data import SampleSet
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.metrics.verdict import compare
from potstill.models.exits import EXIT, WithExits
from potstill.models.weights import load_weights
from potstill.schemes.settings import BornAgainConfig, MutualConfig
from potstill.tasks import Answers

__all__ = ["DEEPEST", "ByExit", "evaluate_networks", "exit_logits", "predict_cell", "test_logits"]

ByExit = Mapping[str, Answers]
"""Answers ``(N, ...)`` by exit, in the order of depth; a network without exits has the deepest alone."""
DEEPEST = "deepest"
ENSEMBLE = "ensemble"
"""What all peers or generations answer together."""


def test_logits(cell: Finished, which: Which) -> Path:
    """Where a cell keeps its answers to the test part, if it keeps them."""
    return cell.folder / f"test-{which}.npy"


def predict_cell(experiment: Experiment, cell: Finished) -> dict[Which, ByExit]:
    """What a cell's last and best weights answer on the test part; every process must ask.

    Answers that the cell keeps are read, and where its last epoch is its best they are computed once.

    Raises:
        UserError: If they are not finite.
    """
    last = _predicted(experiment, cell, "last")
    return {"last": last, "best": last if cell.last_is_best else _predicted(experiment, cell, "best")}


def _predicted(experiment: Experiment, cell: Finished, which: Which) -> ByExit:
    model = experiment.blank(cell.cell.arm)
    if test_logits(cell, which).is_file() and not isinstance(model, WithExits):
        return {DEEPEST: np.load(test_logits(cell, which))}
    cell.load(model, which)
    answers = exit_logits(experiment, model, experiment.splits.test)
    if not np.isfinite(answers[DEEPEST]).all():
        raise UserError(cell.cell.name, f"its {which} weights give NaN or infinite answers on the test part")
    return answers


def evaluate_networks(
    experiment: Experiment,
    cells: Sequence[Finished],
    answers: Sequence[ByExit],
    control: Answers | None = None,
) -> dict[str, Any]:
    """What ``result.json`` holds of the networks beside the student.

    Args:
        experiment: The loaded recipe.
        cells: The student's finished cells.
        answers: Of their selected weights on the test part.
        control: The control's answers ``(seeds, N, ...)``, where it was trained.

    Returns:
        ``networks``: the metric by name, one a seed; where networks answer together, ``ensemble``: those of
        their averaged probabilities, and ``chosen``: the name of the one that is the student.
        ``over_control``: gain, interval and verdict of each over the control. Empty where the student is
        the only network.

    Raises:
        UserError: If weights of a network are gone.
    """
    task, test = experiment.task, experiment.splits.test
    pairs = zip(cells, answers, strict=True)
    found = [mine if len(mine) > 1 else _answers(experiment, cell) for cell, mine in pairs]
    if not found or not found[0]:
        return {}
    row: dict[str, Any] = {
        "networks": {name: [task.value(each[name], test) for each in found] for name in found[0]}
    }
    every = {name: [each[name] for each in found] for name in found[0]}
    if isinstance(experiment.recipe.scheme, BornAgainConfig | MutualConfig):
        every[ENSEMBLE] = [task.joined(list(each.values())) for each in found]
        row[ENSEMBLE] = [task.value(each, test) for each in every[ENSEMBLE]]
        row["chosen"] = [cell.chosen for cell in cells]
    if control is not None:
        plain = task.per_sample(control, test)
        verdicts = {
            name: compare(task.per_sample(np.stack(each), test), plain) for name, each in every.items()
        }
        row["over_control"] = {
            name: {"gain": each.gain, "interval": list(each.interval), "verdict": each.verdict}
            for name, each in verdicts.items()
        }
    return row


def _answers(experiment: Experiment, cell: Finished) -> ByExit:
    """Answers of each network of one cell."""
    found = {}
    part = experiment.evaluation(experiment.splits.test)
    for name, network in experiment.networks().items() if cell.networks else ():
        load_weights(network, cell.folder / f"{name}.safetensors", f"{cell.cell.name}/{name}")
        found[name] = experiment.task.predict(network.to(experiment.device), part, "student").numpy()
    return found


def exit_logits(experiment: Experiment, network: nn.Module, part: SampleSet) -> ByExit:
    """Answers of every exit, of a network without exits its answer alone.

    Args:
        experiment: The loaded recipe.
        network: The trained network.
        part: What it answers to; every process must ask.
    """
    paths = network.paths if isinstance(network, WithExits) else ()
    every = _AllExits(network) if isinstance(network, WithExits) else network
    answers = experiment.task.predict(every.to(experiment.device), experiment.evaluation(part), "student")
    names = [*paths, DEEPEST]
    return {name: some.numpy() for name, some in zip(names, answers.chunk(len(names), 1), strict=True)}


class _AllExits(nn.Module):
    """The answers of all exits beside each other, the deepest last."""

    def __init__(self, network: WithExits) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, exits x C)``."""
        signals = self.network(inputs)
        return torch.cat([*(signals.taps[EXIT + path] for path in self.network.paths), signals.output], dim=1)
