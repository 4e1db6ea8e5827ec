"""What generators answer: images, compared pixel by pixel.

A loss sees images ``(N, C, H, W)`` and gives one value per image, ``(N,)``.
"""

from __future__ import annotations

from torch import Tensor

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked, masked

__all__ = ["image_l1"]


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
