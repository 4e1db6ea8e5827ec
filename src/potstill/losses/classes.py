"""What the teacher says about the classes: the right one against the others, and their order.

Shapes: logits ``(N, C)``, C at least 2. ``decoupled_kl`` gives one value per prediction (tokens
``(N, L, C)`` too), ``dist`` one for a whole batch. Both are computed in log-space and at least in float32.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from potstill.losses._declare import Positive, Range, matches
from potstill.losses._softmax import comparable, divergence, log_probabilities
from potstill.losses.reduce import masked

__all__ = ["decoupled_kl", "dist"]

ROUNDINGS = 16
"""Probabilities that differ by fewer roundings than this are all equal: their direction is noise."""

AtLeastZero = Annotated[float, Range(least=0)]


@matches("logits", weight=1.0, target=True)
def decoupled_kl(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    alpha: AtLeastZero = 1.0,
    beta: AtLeastZero = 2.0,
    temperature: Positive = 4.0,
    where: Tensor | None = None,
) -> Tensor:
    """KL in two parts with weights of their own: right class against the rest, and among the rest.

    In plain KL the second part has the weight 1 - p_t[y]: it vanishes where the teacher is sure. The
    authors let the weight grow linearly over the first 20 of 240 epochs; their beta for CIFAR-100 is 8
    for ResNet32x4 -> ResNet8x4 and 2 for ResNet-56 -> ResNet-20; for ImageNet 0.5 at T = 1.

    Formula:
        T^2 * (alpha KL(b_t || b_s) + beta KL(q_t || q_s)), b = (p[y], 1 - p[y]), y the target,
        p = softmax(z / T), q = softmax of z / T without class y

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        target: Indices of the right classes, ``(N,)`` or ``(N, L)``, int64; anything where ``where`` is
            false.
        alpha: Weight of the right class against the rest, at least 0.
        beta: Weight of the divergence among the rest, at least 0.
        temperature: T, above 0.
        where: Boolean of the target's shape: which predictions count.

    Returns:
        One value per prediction, of the target's shape, never below 0, 0 where both agree.

    Raises:
        ValueError: If the shapes differ, the target's does not fit, or there are fewer than two classes.

    Reference:
        Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", 2022,
        https://arxiv.org/abs/2203.08679

    Example:
        >>> decoupled_kl(torch.zeros(1, 3), torch.tensor([[200.0, 0.0, 0.0]]), torch.tensor([1]))
        tensor([28.6682])
    """
    student, teacher = comparable(student, teacher, where)
    if target.shape != student.shape[:-1] or student.shape[-1] < 2:
        raise ValueError(
            f"expected logits (N, C) of at least 2 classes and a target (N,), got logits "
            f"{tuple(student.shape)} and target {tuple(target.shape)}"
        )
    right = masked(target, where).unsqueeze(-1)
    is_right = torch.zeros_like(student, dtype=torch.bool).scatter(-1, right, True)
    ours, our_rest = _decoupled(student / temperature, is_right)
    theirs, their_rest = _decoupled(teacher / temperature, is_right)
    values = alpha * divergence(theirs, ours) + beta * divergence(their_rest, our_rest)
    return masked(values * temperature**2, where)


def _decoupled(logits: Tensor, is_right: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of (p[y], 1 - p[y]), ``(N, 2)``, and of q, ``(N, C)`` with 0 at y (alike in both nets).

    By the margin of the right class over the sum of the others; log(1 - p[y]) itself would be -inf as soon
    as p[y] rounds to 1.
    """
    rest = logits.masked_fill(is_right, -torch.inf).logsumexp(dim=-1, keepdim=True)
    margin = torch.where(is_right, logits, torch.zeros_like(logits)).sum(dim=-1, keepdim=True) - rest
    right_or_not = logsigmoid(torch.cat([margin, -margin], dim=-1))
    return right_or_not, torch.where(is_right, torch.zeros_like(logits), logits - rest)


@matches("logits", weight=2.0, over_set=True)
def dist(
    student: Tensor,
    teacher: Tensor,
    *,
    inter: AtLeastZero = 1.0,
    intra: AtLeastZero = 1.0,
    temperature: Positive = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """Pearson correlation instead of KL: the order of classes and of samples, not their values.

    What is constant correlates with nothing, except with what is constant too: there the distance is 0.
    With one sample the part over samples is so 0.

    Formula:
        T^2 * (inter (1 - mean_n rho(p_s[n], p_t[n])) + intra (1 - mean_c rho(p_s[:, c], p_t[:, c]))),
        p = softmax(z / T), rho Pearson's correlation

    Args:
        student: Logits ``(N, C)``.
        teacher: Logits of the same shape.
        inter: Weight of the correlation between classes, one per sample, at least 0.
        intra: Weight of the correlation between samples, one per class, at least 0.
        temperature: T, above 0; the authors use 4 for CIFAR and 1 for ImageNet.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        0-d, 0 to ``2 T^2 (inter + intra)``.

    Raises:
        ValueError: If the shapes differ or are not ``(N, C)``.

    Reference:
        Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", 2022,
        https://arxiv.org/abs/2205.10536

    Example:
        >>> dist(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), temperature=1.0)
        tensor(2.0000)
    """
    student, teacher = comparable(student, teacher, where)
    if student.dim() != 2:
        raise ValueError(f"expected logits (N, C), got {tuple(student.shape)}")
    counts = masked(torch.ones_like(student[:, 0], dtype=torch.bool), where)
    ours, theirs = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
    by_sample = _correlation_distance(ours, theirs, counts, dim=1).sum() / counts.sum().clamp(min=1)
    by_class = _correlation_distance(ours, theirs, counts, dim=0).mean()
    return (inter * by_sample + intra * by_class) * temperature**2


def _correlation_distance(ours: Tensor, theirs: Tensor, counts: Tensor, dim: int) -> Tensor:
    """1 - rho of the probabilities along ``dim`` over the rows that count, from their logarithms.

    Half the squared distance of the two directions, which is exactly 0 for equal ones; a constant has none.
    """
    (first, first_flat), (second, second_flat) = (_direction(each, counts, dim) for each in (ours, theirs))
    apart = (first - second).square().sum(dim=dim) / 2
    return apart + (first_flat ^ second_flat).squeeze(dim) / 2


def _direction(logarithms: Tensor, counts: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Centred probabilities with length 1 along ``dim``, and whether they are constant (then zeros).

    The largest is taken as 1: a scale does not change the correlation, and nothing underflows.
    """
    counted = counts.unsqueeze(1).expand_as(logarithms)
    top = logarithms.masked_fill(~counted, -torch.inf).amax(dim=dim, keepdim=True).detach()
    zeros = torch.zeros_like(logarithms)
    scaled = torch.where(counted, torch.where(counted, logarithms - top, zeros).exp(), zeros)
    mean = scaled.sum(dim=dim, keepdim=True) / counted.sum(dim=dim, keepdim=True).clamp(min=1)
    centred = torch.where(counted, scaled - mean, zeros)
    noise = ROUNDINGS * torch.finfo(scaled.dtype).eps * (1 + top.abs())
    flat = centred.abs().amax(dim=dim, keepdim=True) <= noise
    squares = centred.square().sum(dim=dim, keepdim=True)
    length = torch.where(flat, torch.ones_like(squares), squares).sqrt()
    return torch.where(flat, zeros, centred / length), flat
