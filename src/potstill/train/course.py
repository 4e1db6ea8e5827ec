"""Where a training stands: all of it follows from the number of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from potstill.batch import Batch
from potstill.data.loader import Loader
from potstill.schemes.stages import Stage
from potstill.train.settings import TrainConfig

__all__ = ["Course", "Prepare", "total_steps"]

LOGGED_ROWS = 200

Prepare = Callable[[Tensor, Tensor, Tensor, int], Batch]


def _steps_per_epoch(loader: Loader, config: TrainConfig) -> int:
    """Optimiser steps of one epoch; the last may have fewer batches to accumulate."""
    return math.ceil(loader.batches_per_epoch / config.accumulate)


def total_steps(loader: Loader, config: TrainConfig) -> int:
    """Optimiser steps of a training."""
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * _steps_per_epoch(loader, config)))


class Course:
    """The course of one training, a pure function of the step: nothing to save or restore.

    Args:
        loader: The training batches.
        config: Length and accumulation.
    """

    def __init__(self, loader: Loader, config: TrainConfig) -> None:
        self._loader = loader
        self._accumulate = config.accumulate
        self._epoch_steps = _steps_per_epoch(loader, config)
        self.total = total_steps(loader, config)
        self._log_every = max(1, self.total // LOGGED_ROWS)

    def epoch(self, done: int) -> int:
        """Number, from 1, of the epoch that the last of ``done`` steps belongs to."""
        return (done - 1) // self._epoch_steps + 1

    def ends_epoch(self, done: int) -> bool:
        """Whether an epoch, or the training, is complete after ``done`` steps."""
        return done % self._epoch_steps == 0 or done == self.total

    def is_logged(self, done: int) -> bool:
        """Whether a row of figures is due after ``done`` steps."""
        return done % self._log_every == 0 or done == self.total

    def samples(self, done: int) -> float:
        """Training samples, over all processes, that ``done`` steps have seen."""
        return done * self._loader.batches_per_epoch * self._loader.batch_size / self._epoch_steps

    def stage(self, stages: Sequence[Stage], step: int) -> Stage:
        """The stage that step number ``step``, from 0, belongs to."""
        end, progress = 0.0, step / self.total
        for stage in stages:
            end += stage.share
            if progress < end:
                return stage
        return stages[-1]

    def batches(self, step: int, prepare: Prepare) -> Iterator[list[Batch]]:
        """The batches of each step from number ``step`` on, without end, grouped for accumulation."""
        epoch, position = divmod(step, self._epoch_steps)
        while True:
            group: list[Batch] = []
            left = self._loader.batches_per_epoch - position * self._accumulate
            for images, labels, index in self._loader.epoch(epoch, position * self._accumulate):
                group.append(prepare(images, labels, index, epoch))
                left -= 1
                if len(group) == self._accumulate or left == 0:
                    yield group
                    group = []
            epoch, position = epoch + 1, 0
