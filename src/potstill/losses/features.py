"""What the inside of a network computes: intermediate features, position by position.

Shapes: maps ``(N, C, H, W)``, tokens ``(N, L, C)`` or vectors ``(N, C)``, equal for student and teacher
(an adapter makes them so); a loss gives one value per sample, ``(N,)``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from potstill.losses._declare import matches
from potstill.losses.reduce import blanked, masked, mean_over_rows

__all__ = ["feature_cosine", "feature_mse"]


def _comparable(student: Tensor, teacher: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both, of one shape, in at least float32, 0 where they do not count."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected student and teacher features of one shape (an adapter makes them so), got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    return blanked(student, where), blanked(teacher, where)


@matches("features", weight=100.0, adapter=True, at="middle")
def feature_mse(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean squared difference of features, the hint of FitNets.

    Formula:
        mean over channels and positions of (A(f_s) - f_t)^2, A the adapter

    Args:
        student: Adapted features ``(N, C, H, W)``, ``(N, L, C)`` or ``(N, C)``.
        teacher: Features of the same shape.
        where: Boolean ``(N,)``: which samples count; of tokens also ``(N, L)``: which tokens.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Romero and others, "FitNets: Hints for Thin Deep Nets", 2014, https://arxiv.org/abs/1412.6550

    Example:
        >>> feature_mse(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
        tensor([1., 1.])
    """
    student, teacher = _comparable(student, teacher, where)
    squares = mse_loss(student, teacher, reduction="none")  # one pass forward and one back
    if where is not None and where.dim() == 2:
        return mean_over_rows(squares.mean(dim=-1), where)
    return masked(squares.flatten(1).mean(dim=1), where)


@matches("features", weight=1.0, adapter=True)
def feature_cosine(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """One minus the cosine of the channel vectors, averaged over positions.

    A vector of zeros has no direction: its distance from another of zeros is 0, from any other 1.

    Formula:
        mean over positions of 1 - <A(f_s), f_t> / (||A(f_s)|| ||f_t||), over channels

    Args:
        student: Adapted features ``(N, C, H, W)``, ``(N, L, C)`` or ``(N, C)``.
        teacher: Features of the same shape.
        where: Boolean ``(N,)``: which samples count; of tokens also ``(N, L)``: which tokens.

    Returns:
        One value per sample, ``(N,)``, 0 to 2.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Sanh and others, "DistilBERT, a distilled version of BERT", 2019 (the cosine loss of hidden
        states), https://arxiv.org/abs/1910.01108

    Example:
        >>> feature_cosine(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([1.])
    """
    student, teacher = _comparable(student, teacher, where)
    channels = 1 if student.dim() == 4 else -1
    first, second = _direction(student, channels), _direction(teacher, channels)
    # Half the squared distance of unit vectors is 1 - cos, without cancellation near equality.
    values = (first - second).square().sum(dim=channels) / 2
    one_is_zero = (first.square().sum(dim=channels) == 0) ^ (second.square().sum(dim=channels) == 0)
    values = torch.where(one_is_zero, 2 * values, values)  # that half is 1/2 where one vector is 0
    if where is not None and where.dim() == 2:
        return mean_over_rows(values, where)
    return masked(values.reshape(values.shape[0], -1).mean(dim=1), where)


def _direction(features: Tensor, channels: int) -> Tensor:
    """Unit vectors along ``channels``; vectors of zeros stay zeros, and give a gradient of zeros."""
    largest = features.abs().amax(dim=channels, keepdim=True).detach()
    zero = largest == 0
    scaled = features / torch.where(zero, torch.ones_like(largest), largest)
    squares = scaled.square().sum(dim=channels, keepdim=True)
    norms = torch.where(zero, torch.ones_like(squares), squares).sqrt()
    return scaled / norms
