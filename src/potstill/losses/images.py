"""What generators answer: images, compared pixel by pixel or as another network sees them.

A loss sees images ``(N, C, H, W)`` and or maps of them and gives one value per image, ``(N,)``.
"""

from __future__ import annotations

from torch import Tensor

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked, masked

__all__ = ["image_l1", "perceptual"]


@matches("logits", weight=10.0)
def image_l1(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the student's output from the teacher's.

    Formula:
        mean over channels and pixels of |x_s - x_t|

    Args:
        student: Outputs ``(N, ...)``.
        teacher: Outputs of the same shape.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Li and others, "GAN Compression: Efficient Architectures for Interactive Conditional GANs", 2020,
        https://arxiv.org/abs/2003.08936 (the reconstruction loss of unpaired data)

    Example:
        >>> import torch
        >>> image_l1(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
        tensor([1., 1.])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected outputs of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    difference = (blanked(student, where) - blanked(teacher, where)).abs()
    return masked(difference.flatten(1).mean(dim=1), where)


@matches("seen", weight=1.0)
def perceptual(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Distance of the student's image from the teacher's in a network's eyes: LPIPS without trained weights.

    Each channel vector is brought to length 1. Several layers of the network that sees count as their mean.

    Formula:
        mean over positions of |f_s / |f_s| - f_t / |f_t||^2, f the channels of a frozen network's maps

    Args:
        student: Maps of the student's images, ``(N, C, H, W)`` or ``(N, C)``.
        teacher: Maps of the teacher's, of the same shape.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, 0 to 4.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Zhang, Isola, Efros, Shechtman, Wang, "The Unreasonable Effectiveness of Deep Features as a
        Perceptual Metric", 2018, https://arxiv.org/abs/1801.03924 (its baseline without learnt weights)

    Example:
        >>> import torch
        >>> maps = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
        >>> perceptual(maps, maps.flip(1))
        tensor([2.])
    """
    if student.shape != teacher.shape:
        raise ValueError(f"expected maps of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    difference = _unit(blanked(student, where)) - _unit(blanked(teacher, where))
    return masked(difference.square().sum(dim=1, keepdim=True).flatten(1).mean(dim=1), where)


def _unit(maps: Tensor) -> Tensor:
    return maps / (maps.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
