"""How much the student's features say about the teacher's: a Gaussian around what they predict.

Shapes: maps ``(N, C, H, W)``, tokens ``(N, L, C)`` or vectors ``(N, C)``; a value per sample, ``(N,)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, softplus

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked, masked

__all__ = ["VariationalInformation", "variational_information"]

START = 5.0
"""Variance of every channel at the start of the training, the authors' choice."""
LEAST = 1e-5
"""What is added to it, so that it never reaches 0."""


class VariationalInformation(nn.Module):
    """Predicts the teacher's features from the student's, with a variance for each channel that it learns.

    Three layers, 1x1 convolutions or linear, with ReLUs between them, as in the authors' code; the bigger
    map is first average-pooled to the smaller one's size.

    Args:
        student: Shape of the student's tensor, batch first.
        teacher: Shape of the teacher's tensor.
        samples: Not needed.

    Raises:
        ValueError: If the two are not of one kind, or have different numbers of tokens.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], *, samples: int | None = None) -> None:
        super().__init__()
        student, teacher = tuple(student), tuple(teacher)
        maps = len(student) == 4
        if len(student) != len(teacher) or (not maps and student[1:-1] != teacher[1:-1]):
            raise ValueError(
                f"expected layers of one kind (maps, vectors, or as many tokens), got student {student} and "
                f"teacher {teacher}"
            )
        channel = 1 if maps else -1
        ours, theirs = student[channel], teacher[channel]

        def layer(inside: int) -> nn.Module:
            return nn.Conv2d(inside, theirs, 1, bias=False) if maps else nn.Linear(inside, theirs, bias=False)

        self.mean = nn.Sequential(layer(ours), nn.ReLU(), layer(theirs), nn.ReLU(), layer(theirs))
        self.raw_variance = nn.Parameter(torch.full((theirs,), math.log(math.expm1(START - LEAST))))

    @property
    def variance(self) -> Tensor:
        """Of each of the teacher's channels, ``(C,)``."""
        return softplus(self.raw_variance) + LEAST

    def forward(
        self, student: Tensor, teacher: Tensor, *, where: Tensor | None = None, index: Tensor | None = None
    ) -> Tensor:
        """:func:`variational_information` of the predicted features.

        Args:
            student: Maps ``(N, C, H, W)``, tokens ``(N, L, C)`` or vectors ``(N, C)``.
            teacher: The same of the teacher, with channels and size of its own.
            where: Boolean ``(N,)``: which samples count.
            index: Not needed.

        Returns:
            One value per sample, ``(N,)``.
        """
        student = blanked(student, where).to(self.raw_variance.dtype)
        if student.dim() == 4:
            height, width = (min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True))
            student, teacher = (_pooled(each, (height, width)) for each in (student, teacher))
        return variational_information(self.mean(student), teacher, variance=self.variance, where=where)


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return maps if tuple(maps.shape[2:]) == size else adaptive_avg_pool2d(maps, size)


@matches(
    "features",
    weight=1.0,
    learns=VariationalInformation,
    zero_at_equality=False,
    non_negative=False,
    reason="a negative log-likelihood: log v is below 0 for a variance below 1, and stands at equality too",
)
def variational_information(
    student: Tensor, teacher: Tensor, *, variance: Tensor | None = None, where: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of the teacher's features under a Gaussian that the student predicts.

    It bounds the mutual information of the two layers. In a recipe :class:`VariationalInformation` makes
    the mean and the variance, and learns both with the student.

    Formula:
        mean over channels and positions of 1/2 ((mu(f_s) - f_t)^2 / v + log v), v per channel

    Args:
        student: Predicted features mu ``(N, C, H, W)``, ``(N, L, C)`` or ``(N, C)``.
        teacher: Features of the same shape.
        variance: v, ``(C,)``, above 0; 1 where ``None``.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``; below 0 where v is small and the prediction good.

    Raises:
        ValueError: If the shapes differ, or there is not one variance a channel.

    Reference:
        Ahn and others, "Variational Information Distillation for Knowledge Transfer", 2019,
        https://arxiv.org/abs/1904.05835

    Example:
        >>> variational_information(torch.tensor([[2.0]]), torch.tensor([[0.0]]), variance=torch.ones(1))
        tensor([2.])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected predicted and teacher features of one shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
    channel = 1 if student.dim() == 4 else student.dim() - 1
    squares = (blanked(student, where) - blanked(teacher, where)).square()
    if variance is None:
        return masked(squares.flatten(1).mean(dim=1) / 2, where)
    if variance.shape != (student.shape[channel],):
        raise ValueError(
            f"variance: expected one a channel, ({student.shape[channel]},), got {tuple(variance.shape)}"
        )
    spread = variance.to(squares.dtype).reshape(-1, *[1] * (student.dim() - 1 - channel))  # (C, 1, 1)
    return masked((squares / spread + spread.log()).flatten(1).mean(dim=1) / 2, where)
