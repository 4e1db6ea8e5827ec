"""The one masked mean: what every caller does with a loss's values.

A loss returns one value per prediction and 0 where ``where`` is false; nobody takes ``reduction=``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["masked", "masked_mean", "precise"]


def precise(tensor: Tensor) -> Tensor:
    """The tensor in at least float32: half precision is raised, float64 is kept.

    >>> precise(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def masked(values: Tensor, where: Tensor | None) -> Tensor:
    """``values`` with 0 at predictions that do not count, whatever stood there (NaN too).

    Args:
        values: One value per prediction, ``(N,)`` or ``(N, L)``.
        where: Boolean of the same shape, ``None`` where all count.

    Raises:
        ValueError: If the shapes differ.

    >>> masked(torch.tensor([1.0, 2.0]), torch.tensor([True, False]))
    tensor([1., 0.])
    """
    if where is None:
        return values
    if where.shape != values.shape:
        raise ValueError(f"where: expected shape {tuple(values.shape)}, got {tuple(where.shape)}")
    return torch.where(where, values, torch.zeros_like(values))


def masked_mean(values: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean over the predictions that count; 0 (never NaN) where none does.

    Args:
        values: One value per prediction, ``(N,)`` or ``(N, L)``.
        where: Boolean of the same shape, ``None`` where all count.

    Returns:
        0-d.

    >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    if where is None:
        return values.mean() if values.numel() else values.sum()
    return masked(values, where).sum() / where.sum().clamp(min=1)
