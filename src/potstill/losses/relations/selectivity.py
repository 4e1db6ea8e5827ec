"""Where each neuron looks: the channels of a map as a set of directions over positions.

Shapes: maps ``(N, C, H, W)``; student and teacher may differ in channels and in size; one value per
sample, ``(N,)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked, masked

__all__ = ["neuron_selectivity"]


@matches("maps", weight=50.0, at="last")
def neuron_selectivity(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Maximum mean discrepancy, with a squared polynomial kernel, of the two nets' channels.

    Each channel is a vector over positions of length 1 (one of zeros stays so). The bigger map is
    average-pooled to the smaller one's size. No tensor over pairs of channels and positions is made: with
    fewer positions than channels the value is the squared distance of two position Grams, which is
    the same number.

    Formula:
        mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over channels, k(x, y) = <x, y>^2
        = ||A_t - A_s||_F^2, A = (1/C) sum_c x_c x_c^T

    Args:
        student: Maps ``(N, C, H, W)``.
        teacher: Maps ``(N, C', H', W')``.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0 beyond rounding.

    Raises:
        ValueError: If an input is no batch of maps, or the batches differ in size.

    Reference:
        Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017,
        https://arxiv.org/abs/1707.01219

    Example:
        >>> neuron_selectivity(torch.ones(1, 2, 4, 4), 5 * torch.ones(1, 8, 2, 2))
        tensor([0.])
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[0] != teacher.shape[0]:
        raise ValueError(
            f"expected maps (N, C, H, W) of one batch, got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    ours, theirs = _directions(blanked(student, where), size), _directions(blanked(teacher, where), size)
    if ours.shape[2] <= max(ours.shape[1], theirs.shape[1]):
        values = (_positions(ours) - _positions(theirs)).square().sum(dim=(1, 2))
    else:
        values = _kernel(ours, ours) + _kernel(theirs, theirs) - 2 * _kernel(ours, theirs)
    return masked(values, where)


def _directions(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Channels as vectors over positions, ``(N, C, HW)``, of length 1; those of zeros stay."""
    pooled = (maps if tuple(maps.shape[2:]) == size else adaptive_avg_pool2d(maps, size)).flatten(2)
    largest = pooled.abs().amax(dim=2, keepdim=True).detach()
    zero = largest == 0
    scaled = pooled / torch.where(zero, torch.ones_like(largest), largest)  # squares stay finite
    squares = scaled.square().sum(dim=2, keepdim=True)
    return scaled / torch.where(zero, torch.ones_like(squares), squares).sqrt()


def _positions(directions: Tensor) -> Tensor:
    """``(N, HW, HW)``: mean over channels of the products of every two positions."""
    return torch.bmm(directions.transpose(1, 2), directions) / directions.shape[1]


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    """``(N,)``: mean over pairs of channels of the squared inner product."""
    return torch.bmm(first, second.transpose(1, 2)).square().mean(dim=(1, 2))
