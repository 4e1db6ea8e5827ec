"""What a run asks of a task: batches, the supervised loss, answers and what they are worth, words and files.

A task is a frozen dataclass. It knows what the samples of its data are; the run does not. What a network
answers to a part of the data is one array with a row for each sample (*answers*): logits of a classifier,
losses of a language model, boxes of a detector. Only the task reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill.batch import Batch, Signals
from potstill.data.loader import Loader
from potstill.measure import OneInput

__all__ = ["Answers", "Task"]

Answers = NDArray[np.float32]
Part = Any
"""A part of the data: a :class:`~potstill.data.SampleSet` of the kind that the task reads."""


class Task(Protocol):
    """What is learnt; :class:`~potstill.tasks.Classification` shows the smallest whole one."""

    @property
    def metric(self) -> str:
        """Name of what the result is measured by, such as ``accuracy``; a key of :meth:`score`."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a greater metric is better."""

    @property
    def samples(self) -> str:
        """What the samples are called in messages: ``images``."""

    @property
    def num_classes(self) -> int:
        """Number of classes that an output tells apart."""

    # Training ---------------------------------------------------------------------------------------

    def placed(self, device: torch.device, *, channels_last: bool) -> Task:
        """The same task, its batches on ``device``."""

    def seeded(self, seed: int, samples: int) -> Task:
        """The same task with the augmentation of a seed, for a training set of so many samples."""

    @property
    def partners(self) -> Callable[[Tensor, int], Tensor] | None:
        """Which samples a batch needs beside its own (see :class:`Loader`)."""

    def training_batch(self, samples: Any, target: Any, index: Tensor, view: int, /) -> Batch:
        """A training batch from what the data set gave, and the number of its view."""

    def plain_batch(self, samples: Any, target: Any, index: Tensor, /) -> Batch:
        """A batch for evaluation."""

    @property
    def supervised(self) -> Callable[[Signals, Batch], Tensor] | None:
        """Gives the supervised loss of each prediction, ``(N,)`` or ``(N, L)``; ``None`` without labels."""

    # Answers ----------------------------------------------------------------------------------------

    def predict(self, model: nn.Module, loader: Loader, role: str) -> Tensor:
        """Answers: a row for each sample in the order of the data set, float32, the same on every rank."""

    def score(self, answers: Tensor, loader: Loader) -> dict[str, float]:
        """Validation metrics of answers: :attr:`metric` and others."""

    def value(self, answers: Answers, part: Part) -> float:
        """:attr:`metric` of answers to the test part."""

    def per_sample(self, answers: Answers, part: Part) -> NDArray[np.float64]:
        """What the verdict compares, ``(..., N)`` for answers ``(..., N, ...)``: higher is better."""

    def interval(self, answers: Answers, part: Part) -> tuple[float, float]:
        """95 % interval of the metric over seeds and samples, for answers ``(seeds, N, ...)``."""

    def figures(
        self, answers: Answers, teacher: Answers | None, part: Part
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``result.json`` tells beside the metric, for answers ``(seeds, N, ...)``.

        Returns:
            What compares them with the teacher's answers, empty without; and what they are by themselves.
        """

    def joined(self, answers: Sequence[Answers]) -> Answers:
        """The answers of several networks together."""

    def agreement(self, one: Answers, other: Answers) -> float:
        """How often two networks answer the same, 0 to 1."""

    # Checks and words -------------------------------------------------------------------------------

    def check_output(self, output: Any, batch: Batch, role: str) -> None:
        """Refuse what a network answers to a batch where the task cannot learn from it."""

    def check_teacher(self, answers: Answers, part: Part) -> float:
        """The teacher's metric on validation; refuse one that is not worth listening to."""

    def describe_data(self, train: Part) -> str:
        """The samples in words, for plans: ``10 classes, images (3, 32, 32)``."""

    def describe_input(self, role: str) -> str:
        """How ``role`` wants its samples, in words."""

    def one_input(self, role: str, train: Part) -> OneInput:
        """One input of ``role`` to measure networks with."""

    # What is kept and told --------------------------------------------------------------------------

    def keep(self, model: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the trained student: its weights to ``path``, and beside it what else its users need."""

    def evidence(self, answers: Mapping[str, Answers], part: Part, temperature: float) -> dict[str, Any]:
        """Fields of the report's content that show the answers of the arms, each ``(seeds, N, ...)``."""
