"""A few plain training samples, and the loss of a network on each of them: what scores are computed from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from potstill.batch import Batch, Inputs, Signals, ask
from potstill.experiment import Experiment
from potstill.matching.taps import first_tensor

__all__ = ["Calibration", "repeated"]


class Calibration:
    """Training samples, spread evenly over the training part; they are read once.

    It is one of :data:`potstill.prune.importance.Losses`: called with a network, it gives the supervised loss
    of each sample, ``(N,)``, batch by batch; of a row of tokens the mean over those that count.

    Args:
        experiment: The loaded recipe.
        count: How many samples, at most.
    """

    def __init__(self, experiment: Experiment, count: int) -> None:
        self.experiment = experiment
        self.rows = min(count, len(experiment.splits.train))

    @cached_property
    def batches(self) -> list[Batch]:
        """The samples; texts beside others of their length, as scores are means over places and count all."""
        part = self.experiment.splits.train
        rows = [number * len(part) // self.rows for number in range(self.rows)]
        made = self._batches(rows)
        if not any(map(_padded, made)):
            return made
        by_length: dict[int, list[int]] = {}
        lengths = torch.cat([_mask(batch).sum(dim=1) for batch in made]).tolist()
        for row, length in zip(rows, lengths, strict=True):
            by_length.setdefault(int(length), []).append(row)
        return [batch for _, alike in sorted(by_length.items()) for batch in self._batches(alike)]

    def _batches(self, rows: Sequence[int]) -> list[Batch]:
        part, size = self.experiment.splits.train, self.experiment.recipe.train.batch_size
        return [
            self.experiment.task.plain_batch(*part.__getitems__(list(rows[begin : begin + size])))
            for begin in range(0, len(rows), size)
        ]

    def __call__(self, model: nn.Module) -> Iterator[Tensor]:
        """Losses of ``model``; in the recipe's precision where no gradients are asked for."""
        task, device = self.experiment.task, self.experiment.device
        for batch in self.batches:
            if torch.is_grad_enabled():
                answer = first_tensor(ask(model, batch.input("student")))
            else:
                with self.experiment.precision.autocast(device):
                    answer = first_tensor(ask(model, batch.input("student")))
            assert answer is not None, "a network answers with a tensor"
            assert task.supervised is not None, "what is pruned has labels"
            values = task.supervised(Signals(answer, {}), batch)
            if values.dim() > 1 and batch.where is not None:
                values = values.sum(dim=1) / batch.where.sum(dim=1).clamp(min=1)
            yield values


def _mask(batch: Batch) -> Tensor:
    inputs = batch.input("student")
    assert not isinstance(inputs, Tensor)
    return inputs["attention_mask"]


def _padded(batch: Batch) -> bool:
    """Whether a text is filled up to the length of another."""
    inputs = batch.input("student")
    mask = None if isinstance(inputs, Tensor) else inputs.get("attention_mask")
    return mask is not None and mask.dim() == 2 and not bool(mask.bool().all())


def repeated(inputs: Inputs, count: int) -> Inputs:
    """The first of some inputs, ``count`` times."""
    if isinstance(inputs, Tensor):
        first = inputs[:1].float()
        return first.expand(count, *first.shape[1:]).clone()
    return {name: tensor[:1].expand(count, *tensor.shape[1:]).clone() for name, tensor in inputs.items()}
