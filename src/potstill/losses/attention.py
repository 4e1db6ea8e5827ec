"""Where a network looks: spatial attention maps made from activations.

Shapes: maps ``(N, C, H, W)``; student and teacher may differ in channels and in size.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked, masked

__all__ = ["attention_transfer"]


@matches("maps", weight=1000.0, combine="sum")
def attention_transfer(
    student: Tensor,
    teacher: Tensor,
    *,
    variant: Literal["mean", "paper"] = "mean",
    where: Tensor | None = None,
) -> Tensor:
    """Distance of the normalised maps of squared activations.

    The bigger map is average-pooled to the smaller one's size. A map of zeros has no direction and stays
    a map of zeros.

    Formula:
        a(f) = n(flat(mean_c f^2)), n the L2 norm; variant mean: mean over positions of (a_s - a_t)^2;
        variant paper: ||a_s - a_t||_2

    Args:
        student: Maps ``(N, C, H, W)``.
        teacher: Maps ``(N, C', H', W')``.
        variant: ``mean`` is the authors' code (weight 1000); ``paper`` the formula printed in the paper
            (weight 0.1).
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If an input is no batch of maps, or the batches differ in size.

    Reference:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", 2016,
        https://arxiv.org/abs/1612.03928

    Example:
        >>> attention_transfer(torch.ones(1, 2, 4, 4), 5 * torch.ones(1, 8, 2, 2))
        tensor([0.])
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"expected maps (N, C, H, W) of one batch, got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    ours, theirs = _energy(blanked(student, where)), _energy(blanked(teacher, where))  # (N, H, W) each
    size = (min(ours.shape[1], theirs.shape[1]), min(ours.shape[2], theirs.shape[2]))
    difference = _normalized(_pooled(ours, size)) - _normalized(_pooled(theirs, size))  # (N, HW)
    if variant == "mean":
        return masked(difference.square().mean(dim=1), where)
    return masked(_safe_norm(difference).squeeze(1), where)


def _energy(maps: Tensor) -> Tensor:
    """Mean over channels of the squared activations, each sample scaled by its largest: ``(N, H, W)``.

    The scale cancels in the norm and keeps squares of any finite activation finite.
    """
    largest = maps.abs().amax(dim=(1, 2, 3), keepdim=True).detach()
    scaled = maps / torch.where(largest == 0, torch.ones_like(largest), largest)
    return scaled.square().mean(dim=1)


def _pooled(energy: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(energy.shape[1:]) == size:
        return energy.flatten(1)
    return adaptive_avg_pool2d(energy.unsqueeze(1), size).flatten(1)


def _normalized(vectors: Tensor) -> Tensor:
    """Rows of length 1; rows of zeros stay."""
    squares = vectors.square().sum(dim=1, keepdim=True)
    return vectors / torch.where(squares == 0, torch.ones_like(squares), squares).sqrt()


def _safe_norm(vectors: Tensor) -> Tensor:
    """Length of each row ``(N, 1)``, with a gradient of 0 (not NaN) at 0."""
    squares = vectors.square().sum(dim=1, keepdim=True)
    zero = squares == 0
    return torch.where(
        zero, torch.zeros_like(squares), torch.where(zero, torch.ones_like(squares), squares).sqrt()
    )
