"""Other distances between softened probabilities than the forward KL; language models use them most.

Shapes: logits ``(N, C)`` or, for tokens, ``(N, L, C)``; a loss gives one value per prediction. All are
computed in log-space and at least in float32. Forward KL makes a small student cover all that the teacher
may say; the reverse makes it choose among it; the others stand between. The temperature is 1 by default,
as is usual for tokens. Reverse KL (skewed too), Jensen-Shannon and total variation pull weakly where the
student is far from its teacher, so the labels keep their full weight beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from potstill.losses._declare import Positive, Unit, matches
from potstill.losses._softmax import comparable, divergence, log_mixture, log_probabilities
from potstill.losses.reduce import masked

__all__ = ["generalized_js", "reverse_kl", "skew_kl", "skew_reverse_kl", "total_variation"]


def _both(
    student: Tensor, teacher: Tensor, temperature: float, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logarithms of the student's and of the teacher's probabilities."""
    student, teacher = comparable(student, teacher, where)
    return log_probabilities(student, temperature), log_probabilities(teacher, temperature)


@matches("logits", weight=0.9, labels=1.0)
def reverse_kl(
    student: Tensor, teacher: Tensor, *, temperature: Positive = 1.0, where: Tensor | None = None
) -> Tensor:
    """Kullback-Leibler divergence of the teacher from the student: the student seeks modes.

    Finite also where the teacher's probability is too small for a float.

    Formula:
        T^2 * sum_c p_s (log p_s - log p_t), p = softmax(z / T)

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        temperature: T, above 0.
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, never below 0, 0 where both agree.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large Language Models", 2023,
        https://arxiv.org/abs/2306.08543

    Example:
        >>> reverse_kl(torch.zeros(1, 2), torch.tensor([[200.0, 0.0]]))
        tensor([99.3069])
    """
    log_student, log_teacher = _both(student, teacher, temperature, where)
    return masked(divergence(log_student, log_teacher) * temperature**2, where)


@matches("logits", weight=0.9, labels=0.1)
def skew_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    skew: Unit = 0.1,
    temperature: Positive = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """Forward KL to a student into which a little of the teacher is mixed: its gradients are bounded.

    Formula:
        T^2 * KL(p_t || a p_t + (1 - a) p_s), p = softmax(z / T), a = skew

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        skew: The teacher's share in the mixture, 0 to 1: 0 is :func:`kl`, 1 compares nothing.
        temperature: T, above 0.
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, never below 0, at most ``-T^2 log(skew)``.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models", 2024,
        https://arxiv.org/abs/2402.03898

    Example:
        >>> skew_kl(torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]]))
        tensor([2.3026])
    """
    log_student, log_teacher = _both(student, teacher, temperature, where)
    mixture = log_mixture(log_teacher, log_student, skew)
    return masked(divergence(log_teacher, mixture) * temperature**2, where)


@matches("logits", weight=0.9, labels=1.0)
def skew_reverse_kl(
    student: Tensor,
    teacher: Tensor,
    *,
    skew: Unit = 0.1,
    temperature: Positive = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """Reverse KL to a teacher into which a little of the student is mixed.

    Formula:
        T^2 * KL(p_s || a p_s + (1 - a) p_t), p = softmax(z / T), a = skew

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        skew: The student's share in the mixture, 0 to 1: 0 is :func:`reverse_kl`, 1 compares nothing.
        temperature: T, above 0.
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, never below 0, at most ``-T^2 log(skew)``.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Ko, Kim, Chen, Yun, "DistiLLM: Towards Streamlined Distillation for Large Language Models", 2024,
        https://arxiv.org/abs/2402.03898

    Example:
        >>> skew_reverse_kl(torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]]))
        tensor([2.3026])
    """
    log_student, log_teacher = _both(student, teacher, temperature, where)
    mixture = log_mixture(log_student, log_teacher, skew)
    return masked(divergence(log_student, mixture) * temperature**2, where)


@matches("logits", weight=0.9, labels=1.0)
def generalized_js(
    student: Tensor,
    teacher: Tensor,
    *,
    beta: Unit = 0.5,
    normalized: bool = False,
    temperature: Positive = 1.0,
    temperature_squared: bool = False,
    where: Tensor | None = None,
) -> Tensor:
    """Generalised Jensen-Shannon divergence: from forward KL (``beta`` 0) to reverse KL (``beta`` 1).

    The formula goes to 0 at both ends, where the usual code puts forward and reverse KL: a jump.
    ``normalized`` divides by what makes it vanish, so that those are its limits.

    Formula:
        b KL(p_t || m) + (1 - b) KL(p_s || m), m = b p_t + (1 - b) p_s, p = softmax(z / T), b = beta;
        b = 0: KL(p_t || p_s); b = 1: KL(p_s || p_t); normalized: divided by b (1 - b) between the ends;
        temperature_squared: times T^2

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        beta: The teacher's share in the mixture, 0 to 1.
        normalized: Divide by ``beta * (1 - beta)``, which makes the loss continuous in ``beta``.
        temperature: T, above 0.
        temperature_squared: Multiply by T^2, as the other divergences do; public code does not.
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, never below 0; at most log 2 as it stands at
        ``beta`` 0.5.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Agarwal and others, "On-Policy Distillation of Language Models: Learning from Self-Generated
        Mistakes", 2024, https://arxiv.org/abs/2306.13649

    Example:
        >>> generalized_js(torch.tensor([[0.0, 200.0]]), torch.tensor([[200.0, 0.0]]))
        tensor([0.6931])
    """
    log_student, log_teacher = _both(student, teacher, temperature, where)
    if beta in (0, 1):
        pair = (log_teacher, log_student) if beta == 0 else (log_student, log_teacher)
        values = divergence(*pair)
    else:
        mixture = log_mixture(log_teacher, log_student, beta)
        values = beta * divergence(log_teacher, mixture) + (1 - beta) * divergence(log_student, mixture)
        values = values / (beta * (1 - beta)) if normalized else values
    return masked(values * temperature**2 if temperature_squared else values, where)


@matches("logits", weight=0.9, labels=1.0)
def total_variation(
    student: Tensor, teacher: Tensor, *, temperature: Positive = 1.0, where: Tensor | None = None
) -> Tensor:
    """Total variation: the largest difference of the probabilities that both give to any event.

    Formula:
        T^2 * 1/2 sum_c |p_s - p_t|, p = softmax(z / T)

    Args:
        student: Logits ``(N, C)`` or ``(N, L, C)``.
        teacher: Logits of the same shape.
        temperature: T, above 0.
        where: Boolean ``(N,)`` or ``(N, L)``: which predictions count.

    Returns:
        One value per prediction, ``(N,)`` or ``(N, L)``, 0 to T^2.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Wen, Li, Du, Mou, "f-Divergence Minimization for Sequence-Level Knowledge Distillation", 2023,
        https://arxiv.org/abs/2307.15190

    Example:
        >>> total_variation(torch.zeros(1, 2), torch.tensor([[100.0, 0.0]]))
        tensor([0.5000])
    """
    log_student, log_teacher = _both(student, teacher, temperature, where)
    values = torch.abs(log_student.exp() - log_teacher.exp()).sum(dim=-1) / 2
    return masked(values * temperature**2, where)
