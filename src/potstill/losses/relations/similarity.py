"""Which samples of a batch excite a layer alike.

Shapes: maps ``(N, C, H, W)``, tokens ``(N, L, C)`` or vectors ``(N, C)``; student and teacher need only
share the batch, as what is compared is N x N.
"""

from __future__ import annotations

from torch import Tensor

from potstill.losses._declare import matches
from potstill.losses.relations._pairs import counted, products, same_batch, unit_rows

__all__ = ["similarity_preserving"]


@matches("features", weight=3000.0, over_set=True, at="last")
def similarity_preserving(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Distance of the batches' similarity matrices, whose rows have length 1.

    The matrix is normalised, not the features: a sample with large activations weighs more within a row,
    as in the paper. A sample whose features are all 0 has a row of zeros.

    Formula:
        G = rows of f f^T over their L2 norm, f the features as (N, -1); ||G_s - G_t||_F^2 / N^2

    Args:
        student: Features ``(N, ...)``.
        teacher: Features ``(N, ...)``, of any other size.
        where: Boolean ``(N,)``: which samples count; the others are not in the batch.

    Returns:
        0-d, never below 0.

    Raises:
        ValueError: If an input is no batch of features, or the batches differ in size.

    Reference:
        Tung, Mori, "Similarity-Preserving Knowledge Distillation", 2019, https://arxiv.org/abs/1907.09682

    Example:
        >>> import torch
        >>> similarity_preserving(torch.eye(2), torch.eye(2))
        tensor(0.)
        >>> similarity_preserving(torch.eye(2), torch.ones(2, 1))
        tensor(0.2929)
    """
    student, teacher = same_batch(student, teacher, where)
    difference = unit_rows(products(student)) - unit_rows(products(teacher))  # (N, N)
    return difference.square().sum() / counted(student, where, 2)
