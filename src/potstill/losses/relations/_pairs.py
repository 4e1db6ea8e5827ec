"""What the relations between samples share: batches that fit, products and cosines of every two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from potstill.losses.reduce import blanked

__all__ = ["cosines", "counted", "products", "same_batch", "unit_rows"]


def same_batch(student: Tensor, teacher: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both as rows ``(N, D)`` in at least float32, rows of zeros where they do not count.

    Raises:
        ValueError: If an input has no features, the batches differ in size, or ``where`` does not fit.
    """
    if student.dim() < 2 or teacher.dim() < 2 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"expected features (N, ...) of one batch, got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    return blanked(student, where).flatten(1), blanked(teacher, where).flatten(1)


def counted(rows: Tensor, where: Tensor | None, power: int) -> Tensor | float:
    """How many groups of ``power`` samples count, at least 1: ``n ** power``."""
    if where is None:
        return float(max(len(rows), 1)) ** power
    return where.sum().clamp(min=1).to(rows.dtype) ** power


def products(rows: Tensor) -> Tensor:
    """Inner products of every two rows, ``(N, N)``, also under autocast in the rows' own precision."""
    result: Tensor = _Products.apply(rows)
    return result


def cosines(rows: Tensor) -> Tensor:
    """Cosines of every two rows, ``(N, N)``, as float64 for what follows; 0 with a row of zeros."""
    inner = products(rows).double()
    squares = inner.diagonal()
    zero = squares == 0
    inverse = squares.masked_fill(zero, 1).rsqrt().masked_fill(zero, 0)
    return inner * (inverse.unsqueeze(1) * inverse)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay.

    Scaled by their largest entry first, so that squares of any finite number stay finite.
    """
    largest = rows.abs().amax(dim=1, keepdim=True).detach()
    scaled = rows / torch.where(largest == 0, torch.ones_like(largest), largest)
    squares = scaled.square().sum(dim=1, keepdim=True)
    return scaled / torch.where(squares == 0, torch.ones_like(squares), squares).sqrt()


class _Products(torch.autograd.Function):
    """One multiplication in the backward pass, where autograd would do two for ``rows @ rows.T``."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return _multiplied(rows, rows.T)

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        return _multiplied(outer + outer.T, rows)


def _multiplied(first: Tensor, second: Tensor) -> Tensor:
    """``first @ second`` as it is: autocast leaves alone what is done in place."""
    return first.new_empty(first.shape[0], second.shape[1]).addmm_(first, second, beta=0)
