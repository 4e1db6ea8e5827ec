"""How samples lie to each other: distances of pairs and angles of triples.

Shapes: vectors ``(N, C)``; student and teacher may differ in width. Everything comes from the N x N
products of centred vectors, in float64: squared distances are differences of such products, and two equal
samples must be found equal, for an angle at rounding noise is noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from potstill.losses._declare import matches
from potstill.losses.relations._angles import angle_errors
from potstill.losses.relations._pairs import counted, same_batch

__all__ = ["rkd_angle", "rkd_distance"]


@matches("vectors", weight=25.0, over_set=True, at="last")
def rkd_distance(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Differences of the pairwise distances, each net's in units of its mean.

    Invariant to rotation, shift and scale of either net's vectors. Equal samples have distance 0, which
    has no gradient and is not in the mean.

    Formula:
        psi_ij = ||f_i - f_j|| / mean of those above 0; mean over N^2 of smooth L1(psi_s - psi_t)

    Args:
        student: Vectors ``(N, C)``.
        teacher: Vectors ``(N, C')``.
        where: Boolean ``(N,)``: which samples count; the others are not in the batch.

    Returns:
        0-d, never below 0; 0 for a batch of one.

    Raises:
        ValueError: If an input is no batch of vectors, or the batches differ in size.

    Reference:
        Park, Kim, Lu, Cho, "Relational Knowledge Distillation", 2019, https://arxiv.org/abs/1904.05068

    Example:
        >>> rkd_distance(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [5.0], [10.0]]))
        tensor(0.)
        >>> rkd_distance(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [5.0], [5.0]]))
        tensor(0.0972)
    """
    student, teacher = same_batch(student, teacher, where)
    ours, theirs = (_in_their_mean(_distances(net, where)) for net in (student, teacher))
    total = smooth_l1_loss(ours, theirs, reduction="sum")
    return (total / counted(ours, where, 2)).to(student.dtype)


@matches("vectors", weight=50.0, over_set=True, at="last")
def rkd_angle(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Differences of the angles that each two samples make at a third.

    Invariant to rotation, shift and scale of either net's vectors. An angle with an arm of length 0
    counts as cosine 0, with no gradient. Memory grows with N^2 and the width, never with N^2 times the
    width: cosines come from distances, a few vertices at a time.

    Formula:
        psi_ijk = cos of the angle at i between j and k = (d_ij^2 + d_ik^2 - d_jk^2) / (2 d_ij d_ik);
        mean over N^3 of smooth L1(psi_s - psi_t)

    Args:
        student: Vectors ``(N, C)``.
        teacher: Vectors ``(N, C')``.
        where: Boolean ``(N,)``: which samples count; the others are not in the batch.

    Returns:
        0-d, never below 0; 0 for a batch of one.

    Raises:
        ValueError: If an input is no batch of vectors, or the batches differ in size.

    Reference:
        Park, Kim, Lu, Cho, "Relational Knowledge Distillation", 2019, https://arxiv.org/abs/1904.05068

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> rkd_angle(corner, 2 * corner)
        tensor(0.)
        >>> rkd_angle(corner, torch.tensor([[0.0], [1.0], [1.0]]))
        tensor(0.1111)
    """
    student, teacher = same_batch(student, teacher, where)
    ours, theirs = (_distances(net, where).square() for net in (student, teacher))
    return (angle_errors(ours, theirs) / counted(ours, where, 3)).to(student.dtype)


def _in_their_mean(lengths: Tensor) -> Tensor:
    """Distances over the mean of those that are not 0."""
    mean = lengths.sum() / lengths.count_nonzero().clamp(min=1)
    return lengths / mean.masked_fill(mean == 0, 1)


def _distances(rows: Tensor, where: Tensor | None) -> Tensor:
    """Distances ``(N, N)`` in float64; 0 for equal samples and for pairs that do not count.

    Samples count as equal where float32 could not tell them apart from the batch's mean.
    """
    lengths: Tensor = _Distances.apply(rows, where)
    return lengths


class _Distances(torch.autograd.Function):
    """Distances whose gradient is 0 (not NaN) where they are 0.

    The gradient depends on differences of rows only, so that the centring drops out; it is made in the
    rows' own precision, whose rounding the differences carry anyway.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, where: Tensor | None) -> Tensor:
        centre = rows.sum(dim=0, dtype=torch.float64) / counted(rows, where, 1)
        centred = rows - centre  # in float64
        products = centred @ centred.T
        squares = products.diagonal()
        sums = squares.unsqueeze(1) + squares
        squares = torch.sub(sums, products, alpha=2)
        gone = squares <= 512 * torch.finfo(torch.float64).eps * sums  # not "> ...": NaN stays NaN
        if where is not None:
            gone = gone | ~(where.unsqueeze(1) & where)
        lengths = squares.masked_fill_(gone, 0).sqrt_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(centred.to(rows.dtype), lengths)
        return lengths

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None]:
        centred, lengths = ctx.saved_tensors
        pulls = (outer / lengths).masked_fill_(lengths == 0, 0)
        pulls = (pulls + pulls.T).to(centred.dtype)
        gradient = centred * pulls.sum(dim=1, keepdim=True)
        gradient.addmm_(pulls, centred, alpha=-1)  # autocast leaves alone what is done in place
        return gradient, None
