"""Which channels go together: Pearson correlations over the positions of a sample, or over a batch.

Shapes: student and teacher have the same channels (an adapter brings the student's to the teacher's). A
constant channel goes with none: its correlations, that with itself too, are 0 and give no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked, masked

__all__ = ["batch_channel_correlation", "channel_correlation"]

ROUNDINGS = 16
"""A channel that varies by fewer roundings than this is constant: its direction is noise."""


# Weight: without a published one, chosen on CIFAR-10, ResNet-56 to ResNet-8, after 40 steps: its gradient is
# 5 times the supervised loss's there (attention_transfer's 9 times, neuron_selectivity's 5 times).
@matches("maps", weight=50.0, adapter=True)
def channel_correlation(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean squared difference of the correlations of every two channels over positions.

    Formula:
        R = Pearson correlation over positions, (C, C); mean over entries of (R_s - R_t)^2

    Args:
        student: Adapted maps ``(N, C, H, W)``.
        teacher: Maps ``(N, C, H', W')``.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, 0 to 4.

    Raises:
        ValueError: If an input is no batch of maps, or batches or channels differ.

    Reference:
        Without a paper of its own; over positions as the inner products of Gatys, Ecker, Bethge, "A Neural
        Algorithm of Artistic Style", 2015, https://arxiv.org/abs/1508.06576, centred and normalised

    Example:
        >>> student = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]], [[8.0, 4.0], [8.0, 4.0]]]])
        >>> channel_correlation(student, student * torch.tensor([2.0, -1.0]).reshape(2, 1, 1))
        tensor([2.])
    """
    if student.dim() != 4 or teacher.dim() != 4 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"expected maps (N, C, H, W) with the same batch and channels (an adapter makes them so), got "
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    student, teacher = blanked(student, where).flatten(2), blanked(teacher, where).flatten(2)
    every = torch.ones((), dtype=torch.bool, device=student.device)
    ours, theirs = _directions(student, every), _directions(teacher, every)  # (N, C, HW)
    difference = torch.bmm(ours, ours.transpose(1, 2)) - torch.bmm(theirs, theirs.transpose(1, 2))
    return masked(difference.square().mean(dim=(1, 2)), where)


# Weight: without a published one, chosen on CIFAR-10, ResNet-56 to ResNet-8, after 40 steps: its gradient is
# 0.6 times the supervised loss's there (attention_transfer's 9 times, neuron_selectivity's 5 times).
@matches("vectors", weight=1.0, adapter=True, over_set=True)
def batch_channel_correlation(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean squared difference of the correlations of every two channels over the samples of a batch.

    Two samples correlate any two channels by 1 or -1; with a single one every channel is constant, and the
    value 0.

    Formula:
        R = Pearson correlation over samples, (C, C); mean over entries of (R_s - R_t)^2

    Args:
        student: Adapted vectors ``(N, C)``.
        teacher: Vectors of the same shape.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value for the batch, 0-d, 0 to 4; 0 where no sample counts.

    Raises:
        ValueError: If an input is no batch of vectors, or the shapes differ.

    Reference:
        Without a paper of its own; over a batch as in Zbontar and others, "Barlow Twins: Self-Supervised
        Learning via Redundancy Reduction", 2021, https://arxiv.org/abs/2103.03230, inside each net

    Example:
        >>> student = torch.tensor([[0.0, 4.0], [0.0, 4.0], [1.0, 8.0], [1.0, 8.0]])
        >>> batch_channel_correlation(student, student * torch.tensor([2.0, -1.0]))
        tensor(2.)
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"expected vectors (N, C) of one shape (an adapter makes them so), got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    student, teacher = blanked(student, where), blanked(teacher, where)
    every = torch.ones(student.shape[0], dtype=torch.bool, device=student.device)
    counts = every if where is None else where
    ours, theirs = _directions(student.T, counts), _directions(teacher.T, counts)  # (C, N)
    return (ours @ ours.T - theirs @ theirs.T).square().mean()


def _directions(values: Tensor, counts: Tensor) -> Tensor:
    """Rows ``(..., M)`` with mean 0 and length 1 over the entries that count; a constant row is zeros."""
    zeros = torch.zeros_like(values)
    number = counts.expand(values.shape[-1]).sum().clamp(min=1)
    mean = torch.where(counts, values, zeros).sum(dim=-1, keepdim=True) / number
    centred = torch.where(counts, values - mean, zeros)
    largest = centred.abs().amax(dim=-1, keepdim=True).detach()
    noise = ROUNDINGS * torch.finfo(values.dtype).eps * values.abs().amax(dim=-1, keepdim=True)
    constant = largest <= noise
    scaled = centred / torch.where(constant, torch.ones_like(largest), largest)  # squares stay finite
    squares = scaled.square().sum(dim=-1, keepdim=True)
    norms = torch.where(constant, torch.ones_like(squares), squares).sqrt()
    return torch.where(constant, zeros, scaled / norms)
