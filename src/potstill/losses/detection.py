"""What a detector's heads answer: classes, scores and boxes of the same regions.

Rows are anchors or proposals: both networks were scored on the same ones. Classes are logits of a softmax
whose first class is the background; scores are logits of a sigmoid each, the first of no class.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from potstill.losses._declare import Positive, Range, Unit, matches
from potstill.losses.reduce import blanked, masked

__all__ = ["bounded_regression", "weighted_classes", "weighted_scores"]

AtLeast0 = Annotated[float, Range(least=0)]


@matches(
    "classes",
    weight=1.0,
    target=True,
    zero_at_equality=False,
    reason="a cross-entropy: at equality it is that of the teacher's own answer, and the labels'",
)
def weighted_classes(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    hard: Unit = 0.5,
    background: AtLeast0 = 1.5,
    foreground: AtLeast0 = 1.0,
    temperature: Positive = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """Cross-entropy with the labels and, weighted by class, with the teacher's probabilities.

    Formula:
        hard * CE(s, y) - (1 - hard) T^2 sum_c w_c p_t[c] log p_s[c], w_0 ``background``, else ``foreground``

    Args:
        student: Logits ``(N, C)`` or ``(N, R, C)``; class 0 is the background.
        teacher: Logits of the same shape, of the same regions.
        target: Classes ``(N,)`` or ``(N, R)``, 0 for background.
        hard: Share of the labels. Beside the supervised loss, which has them already, 0 leaves the teacher's.
        background: Weight of the background: what is mistaken for it is not found at all.
        foreground: Weight of all other classes.
        temperature: Divides both logits.
        where: Boolean, of the shape of ``target``: which regions count.

    Returns:
        One value per region, of the shape of ``target``, never below 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Chen and others, "Learning Efficient Object Detection Models with Knowledge Distillation", 2017,
        https://papers.nips.cc/paper/6676

    Example:
        >>> even, sure = torch.zeros(1, 2), torch.tensor([[0.0, 40.0]])
        >>> weighted_classes(even, sure, torch.tensor([1]), background=9.0)
        tensor([0.6931])
    """
    _check_same(student, teacher)
    student, teacher = blanked(student, where), blanked(teacher, where)
    weights = torch.full((student.shape[-1],), foreground, dtype=student.dtype, device=student.device)
    weights[0] = background
    logs = (student / temperature).log_softmax(dim=-1)
    soft = -((teacher / temperature).softmax(dim=-1) * weights * logs).sum(dim=-1) * temperature**2
    chosen = target.clamp(min=0)[..., None]
    plain = -student.log_softmax(dim=-1).gather(-1, chosen)[..., 0]
    return masked(hard * plain + (1.0 - hard) * soft, where)


@matches("scores", weight=1.0, target=True, zero_at_equality=False, reason="the labels' share is not 0 there")
def weighted_scores(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    hard: Unit = 0.0,
    focus: AtLeast0 = 2.0,
    where: Tensor | None = None,
) -> Tensor:
    """The same for detectors with a sigmoid for each class: what is far from its target weighs more.

    Formula:
        sum_c hard |q_s - y|^focus BCE(q_s, y) + (1 - hard) |q_s - q_t|^focus BCE(q_s, q_t), q = sigmoid(z)

    Args:
        student: Logits ``(N, C)`` or ``(N, R, C)``.
        teacher: Logits of the same shape, of the same anchors.
        target: Classes ``(N,)`` or ``(N, R)``, 0 for background.
        hard: Share of the labels.
        focus: How much more; 0 is the plain binary cross-entropy.
        where: Boolean, of the shape of ``target``: which anchors count.

    Returns:
        One value per anchor, of the shape of ``target``, never below 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Li and others, "Generalized Focal Loss", 2020, https://arxiv.org/abs/2006.04388

    Example:
        >>> same = torch.tensor([[-2.0, 3.0]])
        >>> weighted_scores(same, same, torch.tensor([1])).round(decimals=6)
        tensor([0.])
    """
    _check_same(student, teacher)
    student, teacher = blanked(student, where), blanked(teacher, where)
    labels = one_hot(target.clamp(min=0), student.shape[-1]).to(student.dtype)
    labels[..., 0] = 0.0  # background is no class: all scores are to be 0
    values = (1.0 - hard) * _focal(student, teacher.sigmoid(), focus)
    if hard > 0:
        values = values + hard * _focal(student, labels, focus)
    return masked(values.sum(dim=-1), where)


def _focal(logits: Tensor, wanted: Tensor, focus: float) -> Tensor:
    off = (logits.sigmoid() - wanted).square().clamp_min(1e-24).pow(focus / 2)
    return off * binary_cross_entropy_with_logits(logits, wanted, reduction="none")


@matches(
    "boxes",
    weight=0.5,
    target=True,
    zero_at_equality=False,
    reason="it compares the student with the labels, and the teacher only says where to stop",
)
def bounded_regression(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *,
    margin: AtLeast0 = 0.01,
    where: Tensor | None = None,
) -> Tensor:
    """Squared distance from the true box, where the student is not better than the teacher by a margin.

    The teacher's box is no target: it may point the wrong way. It is a bound, below which nothing pulls.

    Formula:
        d_s if d_s + margin > d_t else 0, d = ||box - y||^2

    Args:
        student: Deltas of boxes, or distances from their sides, ``(N, 4)`` or ``(N, R, 4)``.
        teacher: Of the same shape, of the same regions.
        target: The true ones, of the same shape.
        margin: By how much the student must be better.
        where: Boolean ``(N,)`` or ``(N, R)``: which regions have a true box.

    Returns:
        One value per region, ``(N,)`` or ``(N, R)``.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Chen and others, "Learning Efficient Object Detection Models with Knowledge Distillation", 2017,
        https://papers.nips.cc/paper/6676

    Example:
        >>> true, near, far = torch.zeros(1, 4), torch.full((1, 4), 0.1), torch.ones(1, 4)
        >>> bounded_regression(far, near, true), bounded_regression(near, far, true)
        (tensor([4.]), tensor([0.]))
    """
    _check_same(student, teacher)
    student, teacher, target = (blanked(each, where) for each in (student, teacher, target))
    ours, theirs = ((each - target).square().sum(dim=-1) for each in (student, teacher))
    return masked(torch.where(ours + margin > theirs, ours, torch.zeros_like(ours)), where)


def _check_same(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected answers of one shape to the same regions, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
