"""What a network answers: logits and the probabilities they stand for, compared at a temperature.

Shapes: logits ``(N, C)`` or, for tokens, ``(N, L, C)``; a loss gives one value per prediction. All are
computed in log-space and at least in float32. Divergences of softened probabilities carry the factor
``temperature ** 2``, so that their gradients keep their size when the temperature changes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from potstill.losses._declare import Positive, matches
from potstill.losses._softmax import comparable, divergence, log_probabilities
from potstill.losses.reduce import masked

__all__ = ["hard_cross_entropy", "kl", "logit_mse", "probability_mse", "soft_cross_entropy"]

ROUNDINGS = 16
"""Logits that differ by fewer roundings than this are all equal: their direction is noise."""


def _standardized(logits: Tensor) -> Tensor:
    """Each prediction's logits with mean 0 and standard deviation 1 over the classes; all equal: zeros."""
    centred = logits - logits.mean(dim=-1, keepdim=True)
    largest = centred.abs().amax(dim=-1, keepdim=True).detach()
    noise = ROUNDINGS * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=-1, keepdim=True)
    flat = largest <= noise
    scaled = centred / torch.where(flat, torch.ones_like(largest), largest)  # squares stay finite
    spread = torch.where(flat, torch.ones_like(largest), scaled.square().mean(dim=-1, keepdim=True))
    return torch.where(flat, torch.zeros_like(scaled), scaled * spread.rsqrt())


@matches("logits", weight=0.9, labels=0.1)
def kl(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: Positive = 4.0,
    standardize: bool = False,
    where: Tensor | None = None,
) -> Tensor:
    """Kullback-Leibler divergence of the softened student from the softened teacher.

    Formula:
        T^2 * sum_c p_t (log p_t - log p_s), p = softmax(z / T)

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        temperature: T, above 0. The paper's range is 1 to 20; with ``standardize`` 2 is the authors'.
        standardize: Give each prediction's logits mean 0 and standard deviation 1 before the softmax,
            so that the student need not match their size (Sun 2024; authors' weight 9 at T = 2).
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, never below 0, 0 where both agree.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        https://arxiv.org/abs/1503.02531; standardize: Sun and others, "Logit Standardization in
        Knowledge Distillation", 2024, https://arxiv.org/abs/2403.01427

    Example:
        >>> kl(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        tensor([0.])
    """
    student, teacher = comparable(student, teacher, where)
    if standardize:
        student, teacher = _standardized(student), _standardized(teacher)
    log_student = log_probabilities(student, temperature)
    log_teacher = log_probabilities(teacher, temperature)
    return masked(divergence(log_teacher, log_student) * temperature**2, where)


@matches(
    "logits",
    weight=0.9,
    labels=0.1,
    zero_at_equality=False,
    reason="a cross-entropy: at equality it is the teacher's entropy",
)
def soft_cross_entropy(
    student: Tensor, teacher: Tensor, *, temperature: Positive = 4.0, where: Tensor | None = None
) -> Tensor:
    """Cross-entropy of the softened student under the softened teacher.

    Its gradient is that of :func:`kl`; its value is larger by the teacher's entropy.

    Formula:
        -T^2 * sum_c p_t log p_s, p = softmax(z / T)

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        temperature: T, above 0.
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, never below 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
        https://arxiv.org/abs/1503.02531

    Example:
        >>> soft_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2), temperature=1.0)
        tensor([0.6931])
    """
    student, teacher = comparable(student, teacher, where)
    probabilities = log_probabilities(teacher, temperature).exp()
    values = -(probabilities * log_probabilities(student, temperature)).sum(dim=-1)
    return masked(values * temperature**2, where)


@matches(
    "logits",
    weight=0.5,
    labels=0.5,
    zero_at_equality=False,
    reason="a cross-entropy with the teacher's choice as the label: positive while the student doubts",
)
def hard_cross_entropy(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Cross-entropy of the student with the teacher's top class as the label.

    Formula:
        -log p_s[argmax_c z_t], p = softmax(z)

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, never below 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Touvron and others, "Training data-efficient image transformers & distillation through
        attention", 2020, https://arxiv.org/abs/2012.12877

    Example:
        >>> hard_cross_entropy(torch.zeros(1, 2), torch.tensor([[0.0, 1.0]]))
        tensor([0.6931])
    """
    student, teacher = comparable(student, teacher, where)
    classes = student.shape[-1]
    target = teacher.argmax(dim=-1)
    values = cross_entropy(student.reshape(-1, classes), target.reshape(-1), reduction="none")
    return masked(values.reshape(target.shape), where)


@matches("logits", weight=1.0)
def probability_mse(
    student: Tensor, teacher: Tensor, *, temperature: Positive = 1.0, where: Tensor | None = None
) -> Tensor:
    """Squared distance of the probabilities.

    Formula:
        sum_c (p_s - p_t)^2, p = softmax(z / T)

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        temperature: T, above 0.
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, 0 to 2.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Brier, "Verification of forecasts expressed in terms of probability", 1950,
        https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2, with the teacher's
        probabilities in the outcome's place

    Example:
        >>> probability_mse(torch.zeros(1, 2), torch.tensor([[100.0, 0.0]]))
        tensor([0.5000])
    """
    student, teacher = comparable(student, teacher, where)
    difference = log_probabilities(student, temperature).exp() - log_probabilities(teacher, temperature).exp()
    return masked(difference.square().sum(dim=-1), where)


@matches("logits", weight=0.1)
def logit_mse(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Mean squared difference of the logits themselves, before any softmax.

    Formula:
        mean_c (z_s - z_t)^2

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, never below 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Ba, Caruana, "Do Deep Nets Really Need to be Deep?", 2014, https://arxiv.org/abs/1312.6184

    Example:
        >>> logit_mse(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor([0.5000])
    """
    student, teacher = comparable(student, teacher, where)
    return masked((student - teacher).square().mean(dim=-1), where)
