"""Inner products of channels: of one layer with itself, or of one layer with the next.

Shapes: maps ``(N, C, H, W)``; student and teacher may differ in size, not in channels (an adapter brings
them to the teacher's); a loss gives one value per sample, ``(N,)``. Its gradient grows as the third power
of the activations: it is finite in float32, but in float16 may not be where a small map reaches hundreds.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked, masked

__all__ = ["fsp", "gram"]

Pair = tuple[Tensor, Tensor]


# Weight: published ones (50) are for a phase without labels, where its gradient is 39 times theirs (ResNet-56
# to ResNet-8 on CIFAR-10). Beside them 200 steps ended 6 points below the control; see docs/results.md.
@matches("maps", weight=5.0, spans="neighbours", adapter=True, until=0.2)
def fsp(student: Pair, teacher: Pair, *, where: Tensor | None = None) -> Tensor:
    """Mean squared difference of the flow from one layer to the next: their channels' inner products.

    The bigger map of a net is average-pooled to the size of its other one. The authors train with this
    first and alone (``until: 0.2``), then with the labels only; the default weight bears labels beside it.

    Formula:
        G = (1/HW) F1^T F2 of two layers of one net, (C1, C2); mean over entries of (G_s - G_t)^2

    Args:
        student: Adapted maps ``(N, C1, H, W)`` and ``(N, C2, H', W')`` of two consecutive layers.
        teacher: Maps of its two layers, with the same channels.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If an input is no batch of maps, or batches or channels differ.

    Reference:
        Yim and others, "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and
        Transfer Learning", 2017, https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html

    Example:
        >>> ones, zeros = torch.ones(1, 2, 4, 4), torch.zeros(1, 3, 2, 2)
        >>> fsp((ones, zeros + 2), (ones, zeros))
        tensor([4.])
    """
    for ours, theirs in zip(student, teacher, strict=True):
        _check(ours, theirs)
    if student[0].shape[0] != student[1].shape[0]:
        shapes = [tuple(each.shape) for each in student]
        raise ValueError(f"expected two layers' maps of one batch, got {shapes[0]} and {shapes[1]}")
    ours = _flow(blanked(student[0], where), blanked(student[1], where))  # (N, C1, C2)
    theirs = _flow(blanked(teacher[0], where), blanked(teacher[1], where))
    return masked((ours - theirs).square().flatten(1).mean(dim=1), where)


# Weight: without a published one, chosen on CIFAR-10, ResNet-56 to ResNet-8, after 40 steps: its gradient is
# 2 times the supervised loss's there, where fsp's is 4 times.
@matches("maps", weight=2.0, adapter=True)
def gram(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean squared difference of the inner products of a layer's channels, its style.

    Formula:
        G = (1/HW) F^T F, (C, C); mean over entries of (G_s - G_t)^2

    Args:
        student: Adapted maps ``(N, C, H, W)``.
        teacher: Maps ``(N, C, H', W')``.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If an input is no batch of maps, or batches or channels differ.

    Reference:
        Gatys, Ecker, Bethge, "A Neural Algorithm of Artistic Style", 2015,
        https://arxiv.org/abs/1508.06576

    Example:
        >>> gram(2 * torch.ones(1, 3, 4, 4), torch.ones(1, 3, 2, 2))
        tensor([9.])
    """
    _check(student, teacher)
    student, teacher = blanked(student, where), blanked(teacher, where)
    difference = _flow(student, student) - _flow(teacher, teacher)  # (N, C, C)
    return masked(difference.square().flatten(1).mean(dim=1), where)


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"expected maps (N, C, H, W) with the same batch and channels (an adapter makes them so), got "
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )


def _flow(first: Tensor, second: Tensor) -> Tensor:
    """Mean over positions of the products of every two channels: ``(N, C1, C2)``, by one matmul."""
    size = min(first.shape[2], second.shape[2]), min(first.shape[3], second.shape[3])
    first, second = _pooled(first, size), _pooled(second, size)
    return torch.bmm(first, second.transpose(1, 2)) / first.shape[2]


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``(N, C, HW)`` at that size."""
    return (maps if tuple(maps.shape[2:]) == size else adaptive_avg_pool2d(maps, size)).flatten(2)
