"""Output projections of language models, and the forms in which a teacher's answer for tokens may come.

``Head`` makes logits of hidden states; a teacher's answer is :class:`Projected` (hidden states and head),
dense logits, or what a cache holds: :class:`TopK` or :class:`Draws`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

__all__ = ["Draws", "Head", "Projected", "TopK"]


class Head(NamedTuple):
    """An output projection: ``logits = cap(hidden @ weight.T + bias)``.

    Attributes:
        weight: ``(V, H)``, rows in the order of the tokenizer.
        bias: ``(V,)``.
        soft_cap: c in ``cap(z) = c tanh(z / c)``, above 0, where the model bounds its logits.
        words: How many rows, from the first on, are words; all, unless some only fill up a round number.
    """

    weight: Tensor
    bias: Tensor | None = None
    soft_cap: float | None = None
    words: int | None = None

    @property
    def size(self) -> int:
        """Length of the vocabulary."""
        return len(self.weight) if self.words is None else min(self.words, len(self.weight))

    @classmethod
    def of(cls, module: Module, soft_cap: float | None = None) -> Head:
        """The head of a linear layer.

        >>> Head.of(torch.nn.Linear(2, 3)).bias.shape
        torch.Size([3])
        """
        bias = getattr(module, "bias", None)
        return cls(module.get_parameter("weight"), bias if isinstance(bias, Tensor) else None, soft_cap)

    def cut(self, words: int, dtype: torch.dtype) -> Head:
        """The head of the first ``words`` words, without gradient."""
        bias = None if self.bias is None else self.bias.detach()[:words].to(dtype)
        return Head(self.weight.detach()[:words].to(dtype), bias, self.soft_cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``(N, V)`` of hidden states ``(N, H)``, in at least float32, a new tensor."""
        product = hidden.to(self.weight.dtype) @ self.weight.t()
        if self.bias is not None:
            product += self.bias
        logits = product if product.dtype == torch.float64 else product.float()
        if self.soft_cap is None:
            return logits
        return logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)


class Projected(NamedTuple):
    """A network's answer as hidden states ``(..., H)`` and the head that makes logits of them."""

    hidden: Tensor
    head: Head


class TopK(NamedTuple):
    """A teacher's likeliest words, as a cache holds them; all others are one bucket, the tail.

    Attributes:
        ids: ``(..., K)``, none twice within a token, below the student's vocabulary.
        log_probabilities: Theirs, ``(..., K)``, at the temperature of the loss.
        log_tail: Logarithm of the mass of all others, ``(...)``; ``-inf`` where there is none.
    """

    ids: Tensor
    log_probabilities: Tensor
    log_tail: Tensor


class Draws(NamedTuple):
    """Words drawn from a teacher's distribution: the mean over draws is right whatever was drawn.

    Attributes:
        ids: ``(..., N)``, as often as they were drawn, below the student's vocabulary.
        information: ``sum p log p`` of the whole distribution, ``(...)``, so that a forward KL is known up to
            the chance of the draws.
    """

    ids: Tensor
    information: Tensor
