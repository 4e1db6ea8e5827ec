"""Where each channel is active: its activations as a distribution over positions.

Shapes: maps ``(N, C, H, W)``, equal for student and teacher (an adapter makes them so); one value per
sample, ``(N,)``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.losses._declare import Positive, matches
from potstill.losses.reduce import blanked, masked

__all__ = ["channel_distribution"]


# Weight: published ones are for segmentation; chosen on CIFAR-10, ResNet-56 to ResNet-8, after 40 steps: its
# gradient is 3 times the supervised loss's there (attention_transfer's 9, neuron_selectivity's 5 times).
@matches("maps", weight=10.0, adapter=True)
def channel_distribution(
    student: Tensor, teacher: Tensor, *, temperature: Positive = 4.0, where: Tensor | None = None
) -> Tensor:
    """Kullback-Leibler divergence of each channel's softened distribution over positions.

    Made for dense prediction, where the places at which a channel is active are what it says. A shift of a
    whole channel changes nothing.

    Formula:
        T^2 / C * sum_c KL(p_t,c || p_s,c), p_c = softmax of channel c over positions, of f / T

    Args:
        student: Adapted maps ``(N, C, H, W)``.
        teacher: Maps of the same shape.
        temperature: T, above 0.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If an input is no batch of maps, or the shapes differ.

    Reference:
        Shu and others, "Channel-wise Knowledge Distillation for Dense Prediction", 2020,
        https://arxiv.org/abs/2011.13256

    Example:
        >>> maps = torch.rand(1, 2, 4, 4)
        >>> channel_distribution(maps, maps)
        tensor([0.])
    """
    if student.dim() != 4 or student.shape != teacher.shape:
        raise ValueError(
            f"expected maps (N, C, H, W) of one shape (an adapter makes them so), got student "
            f"{tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        )
    ours = torch.log_softmax(blanked(student, where).flatten(2) / temperature, dim=2)  # (N, C, HW)
    theirs = torch.log_softmax(blanked(teacher, where).flatten(2) / temperature, dim=2)
    values = (theirs.exp() * (theirs - ours)).sum(dim=2).mean(dim=1)
    return masked(values * temperature**2, where)
