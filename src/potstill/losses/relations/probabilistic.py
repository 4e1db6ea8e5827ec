"""Which samples are each other's likely neighbours.

Shapes: vectors ``(N, C)``; student and teacher may differ in width.
"""

from __future__ import annotations

from torch import Tensor

from potstill.losses._declare import matches
from potstill.losses.relations._pairs import cosines, counted, same_batch

__all__ = ["probabilistic_transfer"]

FLOOR = 1e-7


@matches("vectors", weight=30000.0, over_set=True, at="last")
def probabilistic_transfer(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Divergence of the probabilities that one sample is picked as another's neighbour.

    A small constant is added to every probability, as two opposite vectors have probability 0.

    Formula:
        p_ij = (1 + cos_ij) / 2 over its sum in row i; mean over N^2 of (p_t + e) log((p_t + e) / (p_s + e)),
        e = 1e-7

    Args:
        student: Vectors ``(N, C)``.
        teacher: Vectors ``(N, C')``.
        where: Boolean ``(N,)``: which samples count; the others are not in the batch.

    Returns:
        0-d, never below 0; 0 for a batch of one.

    Raises:
        ValueError: If an input is no batch of vectors, or the batches differ in size.

    Reference:
        Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", 2018,
        https://arxiv.org/abs/1803.10837

    Example:
        >>> import torch
        >>> probabilistic_transfer(torch.eye(2), torch.eye(2))
        tensor(0.)
        >>> probabilistic_transfer(torch.eye(2), torch.ones(2, 1))
        tensor(0.0294)
    """
    student, teacher = same_batch(student, teacher, where)
    ours, theirs = _neighbours(student, where), _neighbours(teacher, where)  # (N, N)
    divergence = theirs * (theirs / ours).log()
    return (divergence.sum() / counted(divergence, where, 2)).to(student.dtype)


def _neighbours(rows: Tensor, where: Tensor | None) -> Tensor:
    """Probabilities plus the floor; rows and columns that do not count are the floor."""
    kernel = (1 + cosines(rows)).clamp(min=0)  # rounding may pass a cosine of -1
    if where is not None:
        kernel = kernel.masked_fill(~(where.unsqueeze(1) & where), 0)
    sums = kernel.sum(dim=1, keepdim=True)  # at least 1, of a sample with itself, where a row counts
    return kernel / sums.clamp(min=1) + FLOOR
