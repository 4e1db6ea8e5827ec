"""What travels between the parts: a batch, what a network answered, and a training step.

Nothing here computes more than sums; every part of the system may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["Batch", "Share", "Signals", "Step"]


@dataclass(frozen=True)
class Batch:
    """One batch, as a task made it.

    Attributes:
        inputs: The tensor each role sees, ``{"student": (N, ...), "teacher": (N, ...)}``: the same
            view of the same samples, each with its own normalisation.
        target: What the labels say: ``(N,)`` integers for classification, or ``(N, C)`` probabilities
            where images are mixed; ``None`` where there are no labels.
        where: Boolean mask of the valid predictions (``(N,)`` or ``(N, L)``), ``None`` where all are.
        index: Position of each sample in its data set, ``(N,)`` int64.
        view: Number of the augmented view (the epoch, unless a cache repeats views).
    """

    inputs: Mapping[str, Tensor]
    target: Tensor | None
    where: Tensor | None
    index: Tensor
    view: int = 0

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def input(self, role: str) -> Tensor:
        """The tensor of ``role``, or the student's where the role has none of its own."""
        return self.inputs[role] if role in self.inputs else self.inputs["student"]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        inputs = {role: tensor.to(device, non_blocking=True) for role, tensor in self.inputs.items()}
        index = self.index.to(device, non_blocking=True)
        return Batch(inputs, move(self.target), move(self.where), index, self.view)


@dataclass(frozen=True)
class Signals:
    """What a wrapped network answered.

    Attributes:
        output: The network's output, ``(N, C)`` logits for a classifier (a tuple's first tensor).
        taps: Captured tensors by module path; adapted ones stand under their adapter's key.
    """

    output: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Share:
    """One named part of a loss before it is divided: its sum, what to divide by, its weight.

    The sum is unweighted and local to this micro-batch and rank. The loop divides by the count of
    the whole global batch, so accumulation and ranks never change the objective.

    Attributes:
        total: Sum over valid predictions, 0-d, differentiable.
        count: Number of valid predictions that were summed (1 for a loss over a set).
        weight: What the part is multiplied by, schedule included.
    """

    total: Tensor
    count: float
    weight: float

    @property
    def mean(self) -> Tensor:
        """The unweighted mean, 0-d; 0 (never NaN) where nothing was valid."""
        return self.total / max(self.count, 1.0)


@dataclass(frozen=True)
class Step:
    """The result of one forward pass of a scheme.

    Attributes:
        parts: The named parts of the loss.
        output: What the (first) student answered.
    """

    parts: Mapping[str, Share]
    output: Signals

    @property
    def loss(self) -> Tensor:
        """Weighted sum of the local means, 0-d: what a hand-written loop calls ``backward`` on."""
        return self.loss_over({})

    def loss_over(self, counts: Mapping[str, float]) -> Tensor:
        """Weighted sum of ``total / counts[name]``; a part that ``counts`` lacks uses its own count."""
        loss: Tensor | None = None
        for name, part in self.parts.items():
            if part.weight != 0.0:
                value = part.total * (part.weight / max(counts.get(name, part.count), 1.0))
                loss = value if loss is None else loss + value
        return self.output.output.new_zeros(()) if loss is None else loss
