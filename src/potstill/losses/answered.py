"""What a detector answers, as further labels: its boxes of the same regions, and its final ones."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from potstill.losses._declare import Range, Unit, matches
from potstill.losses.reduce import blanked, masked

__all__ = ["response", "teacher_boxes"]

AtLeast0 = Annotated[float, Range(least=0)]
Form = Literal["giou", "l1"]


def apart(boxes: Tensor, others: Tensor, form: Form) -> Tensor:
    """How far boxes ``(..., 4)`` by corners are from others: 1 less the generalised IoU, or the sum of sides.

    >>> apart(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 0.5]]), "giou")
    tensor([0.5000])
    """
    if form == "l1":
        return (boxes - others).abs().sum(dim=-1)

    def area(first: Tensor, last: Tensor) -> Tensor:
        sides = (last - first).clamp(min=0)
        return sides[..., 0] * sides[..., 1]

    first, last = boxes[..., :2], boxes[..., 2:]
    start, end = others[..., :2], others[..., 2:]
    shared = area(torch.maximum(first, start), torch.minimum(last, end))
    union = area(first, last) + area(start, end) - shared
    hull = area(torch.minimum(first, start), torch.maximum(last, end))
    tiny = torch.finfo(boxes.dtype).tiny
    return 1.0 - shared / union.clamp(min=tiny) + (hull - union) / hull.clamp(min=tiny)


@matches("corners", weight=1.0)
def teacher_boxes(
    student: Tensor,
    teacher: Tensor,
    *,
    form: Form = "giou",
    confident: Unit = 0.5,
    sureness: Tensor | None = None,
    where: Tensor | None = None,
) -> Tensor:
    """Distance from the teacher's boxes, where it is confident that there is something.

    Formula:
        1 - GIoU(b_s, b_t), or sum over sides |b_s - b_t|, where the teacher's likeliest class is likely

    Args:
        student: Boxes by corners as shares of the image, ``(N, 4)`` or ``(N, R, 4)``.
        teacher: Of the same shape, of the same regions.
        form: ``giou``, or ``l1``.
        confident: Probability of the teacher's likeliest class from which on its box counts.
        sureness: That probability, ``(N,)`` or ``(N, R)``; without it all boxes count.
        where: Boolean, of the same shape: which regions count.

    Returns:
        One value per region, ``(N,)`` or ``(N, R)``, never below 0; ``giou`` is at most 2.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Rezatofighi and others, "Generalized Intersection over Union", 2019, https://arxiv.org/abs/1902.09630

    Example:
        >>> teacher_boxes(torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([[0.0, 0.0, 0.5, 0.25]]))
        tensor([0.5000])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected boxes of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    student, teacher = blanked(student, where), blanked(teacher, where)
    values = apart(student, teacher, form)
    if sureness is not None:
        values = values * (sureness >= confident)
    return masked(values, where)


@matches(
    "response",
    weight=1.0,
    zero_at_equality=False,
    reason="a cross-entropy: at equality it is that of the teacher's own answer",
)
def response(
    student: Tensor,
    teacher: Tensor,
    *,
    boxes: AtLeast0 = 1.0,
    focus: AtLeast0 = 2.0,
    exclusive: bool = True,
    distance: Tensor | None = None,
    where: Tensor | None = None,
) -> Tensor:
    """The teacher's final boxes as further labels, as sure as it is: for detectors of different kinds.

    A region that one of its boxes overlaps by half has that box's class with the box's score; all others are
    background.

    Formula:
        CE(p, softmax(z)), or sum_c |q_c - p_c|^focus BCE(q_c, p_c) with q = sigmoid(z) where classes do not
        exclude each other; + boxes * p_c (1 - GIoU(b_s, b_t))

    Args:
        student: Logits ``(N, C)`` or ``(N, R, C)``; class 0 is the background.
        teacher: Probabilities of the same shape: of the score at its box's class, of the rest at class 0.
        boxes: Weight of the boxes.
        focus: Without exclusive classes: how much more counts what is far from its target.
        exclusive: Whether a region is of one class alone (a softmax); detectors say it themselves.
        distance: How far the student's box of each region is from the teacher's, ``(N,)`` or ``(N, R)``.
        where: Boolean, of the same shape: which regions count.

    Returns:
        One value per region, never below 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Chen and others, "Learning Efficient Object Detection Models with Knowledge Distillation", 2017,
        https://papers.nips.cc/paper/6676; Li and others, "Generalized Focal Loss", 2020,
        https://arxiv.org/abs/2006.04388

    Example:
        >>> response(torch.zeros(1, 2), torch.tensor([[0.25, 0.75]]))
        tensor([0.6931])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected answers of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    student, teacher = blanked(student, where), blanked(teacher, where)
    if exclusive:
        values = -(teacher * student.log_softmax(dim=-1)).sum(dim=-1)
    else:
        wanted = torch.cat([torch.zeros_like(teacher[..., :1]), teacher[..., 1:]], dim=-1)
        off = (student.sigmoid() - wanted).square().clamp_min(1e-24).pow(focus / 2)
        values = (off * binary_cross_entropy_with_logits(student, wanted, reduction="none")).sum(dim=-1)
    if distance is not None:
        values = values + boxes * teacher[..., 1:].amax(dim=-1) * distance
    return masked(values, where)
