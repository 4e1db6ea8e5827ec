"""What travels between the parts: a batch, what a network answered, and a training step.

Nothing here computes more than sums; every part of the system may import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from potstill.losses.heads import Draws, Head, Projected, TopK

__all__ = ["Batch", "Inputs", "Mixture", "Share", "Signals", "Step", "ask", "moved"]

Inputs = Tensor | Mapping[str, Tensor]
"""What a network takes: a tensor, or tensors by the names of its arguments."""


def ask(network: Callable[..., Any], inputs: Inputs) -> Any:
    """What ``network`` answers; tensors by name are passed as keyword arguments.

    >>> ask(lambda *, left, right: left + right, {"left": torch.ones(2), "right": torch.ones(2)})
    tensor([2., 2.])
    """
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)


def moved(inputs: Inputs, device: torch.device | str) -> Inputs:
    """The same inputs on ``device``."""
    if isinstance(inputs, Mapping):
        return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
    return inputs.to(device, non_blocking=True)


@dataclass(frozen=True)
class Mixture:
    """Of which two images each sample of a batch is mixed.

    Attributes:
        partner: Row of the other image among all that were read, ``(N,)`` int64; a sample's own row where
            it is not mixed. A sample's own image stands in its own row.
        share: Share of the sample's own image, ``(N,)`` float64, 1 where it is not mixed.
    """

    partner: Tensor
    share: Tensor


@dataclass(frozen=True)
class Batch:
    """One batch, as a task made it.

    Attributes:
        inputs: What each role sees, ``{"student": (N, ...), "teacher": (N, ...)}``: the same view of the
            same samples, each with its own normalisation or tokens. A network with several arguments sees
            tensors by their names, ``{"input_ids": (N, L), "attention_mask": (N, L)}``.
        target: What the labels say: ``(N,)`` integers for classification, or ``(N, C)`` probabilities
            where images are mixed; ``None`` where there are no labels.
        where: Boolean mask of the valid predictions (``(N,)`` or ``(N, L)``), ``None`` where all are.
        index: Position of each sample in its data set, ``(N,)`` int64.
        view: Number of the augmented view (the epoch, unless a cache repeats views).
        mixture: Where the teacher's answers are mixed and not its images: how. Its input then holds the
            plain images, the samples' and behind them their partners'.
    """

    inputs: Mapping[str, Inputs]
    target: Tensor | None
    where: Tensor | None
    index: Tensor
    view: int = 0
    mixture: Mixture | None = None

    def __len__(self) -> int:
        return int(self.index.shape[0])

    def input(self, role: str) -> Inputs:
        """What ``role`` sees: the student's inputs where the role has none of its own."""
        return self.inputs[role] if role in self.inputs else self.inputs["student"]

    def tensor(self, role: str) -> Tensor:
        """The one tensor that ``role`` sees.

        Raises:
            ValueError: If it sees several by name.
        """
        inputs = self.input(role)
        if isinstance(inputs, Mapping):
            raise ValueError(f"expected one tensor as input of the {role}, got {', '.join(inputs)}")
        return inputs

    def tokens(self, role: str) -> Tensor | None:
        """Which tokens of ``role``'s input are there, ``(N, L)``: its attention mask, else :attr:`where`.

        >>> inputs = {"student": {"input_ids": torch.ones(1, 2), "attention_mask": torch.tensor([[1, 0]])}}
        >>> Batch(inputs, None, None, torch.arange(1)).tokens("teacher")
        tensor([[ True, False]])
        """
        inputs = self.input(role)
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
        if mask is not None and mask.dim() == 2:
            return mask.bool()
        return self.where

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on ``device``."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        inputs = {role: moved(tensors, device) for role, tensors in self.inputs.items()}
        index = self.index.to(device, non_blocking=True)
        return Batch(inputs, move(self.target), move(self.where), index, self.view, self.mixture)


@dataclass(frozen=True)
class Signals:
    """What a wrapped network answered.

    Attributes:
        output: The network's output, ``(N, C)`` logits for a classifier (a tuple's first tensor).
        taps: Captured tensors by module path; adapted ones stand under their adapter's key.
        head: Where a language model gave what goes into its head: the head. ``output`` is then ``(N, L, H)``.
        known: Where a cached one gave some words of each token: those. ``output`` is then one number a token.
    """

    output: Tensor
    taps: Mapping[str, Tensor] = field(default_factory=dict)
    head: Head | None = None
    known: TopK | Draws | None = None

    @property
    def answer(self) -> Projected | TopK | Draws | Tensor:
        """The output in the form in which it came: hidden states with their head, known words, or logits."""
        if self.known is not None:
            return self.known
        return self.output if self.head is None else Projected(self.output, self.head)


@dataclass(frozen=True)
class Share:
    """One named part of a loss before it is divided: its sum, what to divide by, its weight.

    The sum is unweighted and local to this micro-batch and rank. The loop divides by the count of
    the whole global batch, so accumulation and ranks never change the objective.

    Attributes:
        total: Sum over valid predictions, 0-d, differentiable.
        count: Number of valid predictions that were summed (1 for a loss over a set).
        weight: What the part is multiplied by, schedule included.
        regions: What the total is the sum of, by name, without gradients, where a term tells it.
    """

    total: Tensor
    count: float
    weight: float
    regions: Mapping[str, Tensor] = field(default_factory=dict)

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
        active = {name: part for name, part in self.parts.items() if part.weight != 0.0}
        if not active:
            return self.output.output.new_zeros(())
        factors = [part.weight / max(counts.get(name, part.count), 1.0) for name, part in active.items()]
        totals = torch.stack([part.total for part in active.values()])
        # All at once: small networks with many terms spend their time on calls. No matrix product, which
        # mixed precision would round to half.
        return (totals * torch.tensor(factors, dtype=totals.dtype, device=totals.device)).sum()
