"""How alike samples are in a Gaussian's measure, or how errors of consecutive samples go together.

Shapes: vectors ``(N, C)``.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from potstill.losses._declare import Positive, Range, matches
from potstill.losses.relations._pairs import cosines, counted, same_batch

__all__ = ["correlation_congruence"]


@matches("vectors", weight=1.0, over_set=True, at="last")
def correlation_congruence(
    student: Tensor,
    teacher: Tensor,
    *,
    variant: Literal["kernel", "delta"] = "kernel",
    gamma: Positive = 0.4,
    order: Annotated[int, Range(least=1)] = 2,
    where: Tensor | None = None,
) -> Tensor:
    """Difference of the batches' correlation matrices.

    The default weight is for ``kernel``; public code takes 100 at ``gamma`` 0.4, which cost 4 points in 200
    steps from ResNet-56 to ResNet-8 on CIFAR-10. ``delta`` is not bounded and was published with weight 0.02.

    Formula:
        variant kernel: k_ij = exp(-2 gamma) sum_{p <= order} (2 gamma)^p / p! (x_i . x_j)^p, x = f / ||f||:
        the Gaussian kernel of unit vectors by its Taylor series; mean over N^2 of (k_s - k_t)^2;
        variant delta: mean over i of sum_c |f_s - f_t|_ic |f_s - f_t|_(i+1)c

    Args:
        student: Vectors ``(N, C)``.
        teacher: Vectors ``(N, C')``; for ``delta``, of the same width.
        variant: ``kernel`` is the formula printed in the paper; ``delta`` is what the authors gave for the
            published table on CIFAR-100: it compares the nets' differences at consecutive samples, so
            depends on their order, and the nets' embeddings must mean the same.
        gamma: Sharpness of the kernel, > 0.
        order: Terms of the series beyond the constant, >= 1.
        where: Boolean ``(N,)``: which samples count; the others are not in the batch.

    Returns:
        0-d, never below 0; ``delta`` is 0 for a batch of one.

    Raises:
        ValueError: If an input is no batch of vectors, or the batches differ in size, or for ``delta`` in
            width.

    Reference:
        Peng and others, "Correlation Congruence for Knowledge Distillation", 2019,
        https://arxiv.org/abs/1904.01802

    Example:
        >>> correlation_congruence(torch.eye(2), torch.tensor([[1.0], [1.0]]))
        tensor(0.1266)
        >>> correlation_congruence(torch.eye(2), torch.zeros(2, 2), variant="delta")
        tensor(0.)
    """
    if variant == "delta" and student.shape != teacher.shape:
        raise ValueError(
            f"variant delta: expected student and teacher vectors of one shape, got {tuple(student.shape)} "
            f"and {tuple(teacher.shape)}"
        )
    student, teacher = same_batch(student, teacher, where)
    if variant == "delta":
        return _consecutive(student - teacher, where)
    difference = _kernel(student, gamma, order) - _kernel(teacher, gamma, order)  # (N, N)
    total = difference.square().sum()  # samples that do not count are rows of zeros: alike in both nets
    return (total / counted(difference, where, 2)).to(student.dtype)


def _kernel(rows: Tensor, gamma: float, order: int) -> Tensor:
    alike = cosines(rows)
    series = torch.full_like(alike, (2 * gamma) ** order / math.factorial(order))
    for power in reversed(range(order)):  # Horner's scheme
        series = series * alike + (2 * gamma) ** power / math.factorial(power)
    return math.exp(-2 * gamma) * series


def _consecutive(difference: Tensor, where: Tensor | None) -> Tensor:
    """Mean product of the absolute differences of each sample that counts and the next that does."""
    if where is not None:  # those that count first, in their order; the others are rows of zeros
        difference = difference[torch.argsort((~where).byte(), stable=True)]
        pairs = (where.sum() - 1).clamp(min=1)
    else:
        pairs = torch.tensor(max(len(difference) - 1, 1), device=difference.device)
    size = difference.abs()
    return (size[:-1] * size[1:]).sum() / pairs
