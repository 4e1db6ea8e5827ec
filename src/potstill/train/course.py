"""Where a training stands: all of it follows from the number of the step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from potstill.batch import Batch
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.schemes.stages import Stage
from potstill.train.settings import TrainConfig

__all__ = ["Course", "Place", "Prepare", "total_steps"]

LOGGED_ROWS = 200

Prepare = Callable[[Any, Any, Tensor, int], Batch]
"""A batch from samples, targets, positions ``(n,)`` and the number of their view."""


def _steps_per_epoch(loader: Loader, config: TrainConfig) -> int:
    """Optimiser steps of one epoch; the last may have fewer batches to accumulate."""
    return math.ceil(loader.batches_per_epoch / config.accumulate)


def total_steps(loader: Loader, config: TrainConfig) -> int:
    """Optimiser steps of one training of the recipe's length."""
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * _steps_per_epoch(loader, config)))


@dataclass(frozen=True)
class Place:
    """Where a step is.

    Attributes:
        stage: The stage that it belongs to.
        step: Its number within the stage, from 0.
        steps: Steps of the stage.
    """

    stage: Stage
    step: int
    steps: int

    @property
    def progress(self) -> float:
        """Share of the stage that is done before the step."""
        return self.step / self.steps


class Course:
    """The course of one training, a pure function of the step: nothing to save or restore.

    Stages count in lengths of the recipe's training; each length sees the same batches and views.

    Args:
        loader: The training batches.
        config: Length and accumulation.
        stages: What comes one after the other.

    Raises:
        UserError: If patience is asked for and there are several stages.
    """

    def __init__(
        self, loader: Loader, config: TrainConfig, stages: Sequence[Stage] = (Stage("train"),)
    ) -> None:
        if config.patience is not None and len(stages) > 1:
            names = ", ".join(stage.name for stage in stages)
            raise UserError(
                "train.patience", f"has no meaning for a training in several stages ({names}); leave it out"
            )
        self._loader = loader
        self._accumulate = config.accumulate
        self._epoch_steps = _steps_per_epoch(loader, config)
        self.length = total_steps(loader, config)
        shares = itertools.accumulate(stage.share for stage in stages)
        ends = [math.ceil(self.length * share - 1e-6) for share in shares]
        self._stages = list(zip(stages, [0, *ends[:-1]], ends, strict=True))
        self.total = ends[-1]
        self._log_every = max(1, self.total // LOGGED_ROWS)

    def _within(self, done: int) -> tuple[int, int]:
        """Whole lengths before the last of ``done`` steps, and its number, from 1, in its own."""
        lengths, before = divmod(done - 1, self.length)
        return lengths, before + 1

    def epoch(self, done: int) -> int:
        """Number, from 1, of the epoch that the last of ``done`` steps belongs to."""
        lengths, mine = self._within(done)
        return lengths * math.ceil(self.length / self._epoch_steps) + (mine - 1) // self._epoch_steps + 1

    def ends_epoch(self, done: int) -> bool:
        """Whether an epoch, or a whole length, is complete after ``done`` steps."""
        _, mine = self._within(done)
        return mine % self._epoch_steps == 0 or mine == self.length

    def is_logged(self, done: int) -> bool:
        """Whether a row of figures is due after ``done`` steps."""
        return done % self._log_every == 0 or done == self.total

    def samples(self, done: int) -> float:
        """Training samples, over all processes, that ``done`` steps have seen."""
        return done * self._loader.batches_per_epoch * self._loader.batch_size / self._epoch_steps

    def place(self, step: int) -> Place:
        """Where step number ``step``, from 0, is."""
        for stage, begin, end in self._stages:
            if step < end:
                return Place(stage, step - begin, end - begin)
        raise ValueError(f"expected a step below {self.total}, got {step}")

    def batches(self, step: int, prepare: Prepare) -> Iterator[list[Batch]]:
        """The batches of each step from number ``step`` on, without end, grouped for accumulation."""
        done = step % self.length
        while True:
            epoch, position = divmod(done, self._epoch_steps)
            group: list[Batch] = []
            left = self._loader.batches_per_epoch - position * self._accumulate
            for samples, targets, index in self._loader.epoch(epoch, position * self._accumulate):
                group.append(prepare(samples, targets, index, epoch))
                left -= 1
                if len(group) == self._accumulate or left == 0:
                    yield group
                    group = []
                    done += 1
                    if done == self.length:
                        break
            done %= self.length
