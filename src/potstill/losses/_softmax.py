"""Softened probabilities in log-space: what the losses of logits share.

Everything stays a logarithm until the last product, so that a probability too small for a float is a
number like any other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from potstill.losses.reduce import blanked

__all__ = ["comparable", "divergence", "log_mixture", "log_probabilities"]


def comparable(student: Tensor, teacher: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both, of one shape, in at least float32, 0 where they do not count."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected student and teacher logits of one shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    return blanked(student, where), blanked(teacher, where)


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Logarithms of the softmax at a temperature, over the last dimension."""
    return torch.log_softmax(logits / temperature, dim=-1)


def log_mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Logarithms of ``share * p + (1 - share) * q`` from those of p and q; the ends are exact.

    >>> log_mixture(torch.tensor([-200.0]), torch.tensor([-200.0]), 0.5)
    tensor([-200.])
    """
    if share == 0:
        return second
    if share == 1:
        return first
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def divergence(log_reference: Tensor, log_other: Tensor) -> Tensor:
    """KL of ``other`` from ``reference``, over the last dimension, from logarithms of probabilities.

    >>> divergence(torch.log(torch.tensor([1.0])), torch.log(torch.tensor([0.5])))
    tensor(0.6931)
    """
    return (log_reference.exp() * (log_reference - log_other)).sum(dim=-1)
