"""What the relations between samples share: batches that fit, and means over the pairs that count."""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.losses.reduce import blanked

__all__ = ["counted", "same_batch", "unit_rows"]


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


def counted(rows: Tensor, where: Tensor | None, power: int) -> Tensor:
    """How many groups of ``power`` samples count, at least 1: ``n ** power`` as a 0-d tensor."""
    if where is None:
        return rows.new_tensor(float(max(len(rows), 1)) ** power)
    return where.sum().clamp(min=1).to(rows.dtype) ** power


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay.

    Scaled by their largest entry first, so that squares of any finite number stay finite.
    """
    largest = rows.abs().amax(dim=1, keepdim=True).detach()
    scaled = rows / torch.where(largest == 0, torch.ones_like(largest), largest)
    squares = scaled.square().sum(dim=1, keepdim=True)
    return scaled / torch.where(squares == 0, torch.ones_like(squares), squares).sqrt()
