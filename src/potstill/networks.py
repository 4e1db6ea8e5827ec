"""All networks that a scheme trained, on the test part: peers, generations, exits, and their ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill import quality
from potstill.cells import Finished
from potstill.data import ImageSet
from potstill.experiment import Experiment
from potstill.models.exits import EXIT, WithExits
from potstill.models.weights import load_weights
from potstill.schemes.settings import BornAgainConfig, MutualConfig

__all__ = ["DEEPEST", "evaluate_networks", "exit_logits"]

Labels = NDArray[np.int64]
DEEPEST = "deepest"


def evaluate_networks(experiment: Experiment, cells: Sequence[Finished], labels: Labels) -> dict[str, Any]:
    """What ``result.json`` holds of the networks beside the student.

    Args:
        experiment: The loaded recipe.
        cells: The student's finished cells.
        labels: Of the test part, ``(N,)``.

    Returns:
        ``networks``: accuracies by name, one a seed; where networks answer together, ``ensemble``: those of
        their averaged probabilities, and ``chosen``: the name of the one that is the student. Empty where
        the student is the only network.

    Raises:
        UserError: If weights of a network are gone.
    """
    found = [_logits(experiment, cell) for cell in cells]
    if not found or not found[0]:
        return {}
    row: dict[str, Any] = {
        "networks": {name: [quality.accuracy(logits[name], labels) for logits in found] for name in found[0]}
    }
    if isinstance(experiment.recipe.scheme, BornAgainConfig | MutualConfig):
        row["ensemble"] = [quality.accuracy(_ensemble(list(logits.values())), labels) for logits in found]
        row["chosen"] = [cell.chosen for cell in cells]
    return row


def _logits(experiment: Experiment, cell: Finished) -> dict[str, NDArray[np.float32]]:
    """Logits ``(N, C)`` of each network, or exit, of one cell."""
    student = experiment.blank("student")
    if isinstance(student, WithExits):
        cell.load(student, experiment.recipe.train.select)
        return exit_logits(experiment, student, experiment.splits.test)
    found = {}
    part = experiment.evaluation(experiment.splits.test)
    for name, network in experiment.networks().items() if cell.networks else ():
        load_weights(network, cell.folder / f"{name}.safetensors", f"{cell.cell.name}/{name}")
        found[name] = experiment.task.predict(network.to(experiment.device), part, "student").numpy()
    return found


def exit_logits(experiment: Experiment, network: WithExits, part: ImageSet) -> dict[str, NDArray[np.float32]]:
    """Logits ``(N, C)`` of every exit by name, the deepest last.

    Args:
        experiment: The loaded recipe.
        network: The trained network with its exits.
        part: What it answers to; every process must ask.
    """
    names = [*network.paths, DEEPEST]
    every = _AllExits(network).to(experiment.device)
    answers = experiment.task.predict(every, experiment.evaluation(part), "student")
    return {name: some.numpy() for name, some in zip(names, answers.chunk(len(names), 1), strict=True)}


def _ensemble(logits: Sequence[NDArray[np.float32]]) -> quality.Floats:
    """The mean of their probabilities, ``(N, C)``."""
    mean: quality.Floats = np.mean([quality.softmax(some) for some in logits], axis=0)
    return mean


class _AllExits(nn.Module):
    """The answers of all exits beside each other, the deepest last."""

    def __init__(self, network: WithExits) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, exits x C)``."""
        signals = self.network(inputs)
        return torch.cat([*(signals.taps[EXIT + path] for path in self.network.paths), signals.output], dim=1)
