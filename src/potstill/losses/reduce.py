"""The one masked mean: what every caller does with a loss's values.

A loss returns one value per prediction and 0 where ``where`` is false; nobody takes ``reduction=``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["blanked", "masked", "masked_mean", "mean_over_rows"]


def blanked(tensor: Tensor, where: Tensor | None) -> Tensor:
    """The tensor in at least float32, with 0 in the entries of predictions that do not count.

    What stands there (NaN too) then reaches neither the value nor, as ``0 * nan``, the gradient.

    Args:
        tensor: What a loss compares, ``(N, ...)`` or ``(N, L, ...)``.
        where: Boolean ``(N,)`` or ``(N, L)``, ``None`` where all count.

    Raises:
        ValueError: If ``where`` does not fit the leading dimensions.

    >>> blanked(torch.tensor([[1.0, 2.0], [torch.nan, 3.0]]), torch.tensor([True, False]))
    tensor([[1., 2.],
            [0., 0.]])
    >>> blanked(torch.ones(1, 2, dtype=torch.bfloat16), None).dtype
    torch.float32
    """
    values = tensor if tensor.dtype == torch.float64 else tensor.float()
    if where is None:
        return values
    if where.shape != values.shape[: where.dim()]:
        raise ValueError(
            f"where: expected the leading dimensions of {tuple(values.shape)}, got {tuple(where.shape)}"
        )
    counts = where.reshape(*where.shape, *[1] * (values.dim() - where.dim()))
    return torch.where(counts, values, torch.zeros_like(values))


def masked(values: Tensor, where: Tensor | None) -> Tensor:
    """``values`` with 0 at predictions that do not count.

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


def mean_over_rows(values: Tensor, where: Tensor | None) -> Tensor:
    """Mean over the rows of each sample that count, ``(N, L)`` to ``(N,)``; 0 where none does.

    Args:
        values: ``(N, L)``, 0 at rows that do not count.
        where: Boolean ``(N,)`` or ``(N, L)``, ``None`` where all count.

    >>> mean_over_rows(torch.tensor([[1.0, 3.0]]), torch.tensor([[True, False]]))
    tensor([1.])
    """
    if where is None or where.dim() == 1:
        return masked(values.mean(dim=1), where)
    return masked(values, where).sum(dim=1) / where.sum(dim=1).clamp(min=1)


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
