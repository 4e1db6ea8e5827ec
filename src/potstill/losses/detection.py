"""What a detector's heads answer: classes, scores and boxes of the same regions, and maps by region.

Rows are anchors or proposals: both networks were scored on the same ones. Classes are logits of a softmax
whose first class is the background; scores are logits of a sigmoid each, the first of no class.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from potstill.losses._declare import Positive, Range, Unit, matches
from potstill.losses.reduce import blanked, masked

__all__ = ["bounded_regression", "region_hint", "region_weights", "weighted_classes", "weighted_scores"]

AtLeast0 = Annotated[float, Range(least=0)]
Regions = Literal["none", "boxes", "confident", "split", "attention"]


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


def region_weights(boxes: Tensor | None, teacher: Tensor, regions: Regions, background: float) -> Tensor:
    """How much each place of a map weighs, ``(N, H, W)``; the weights of an image sum to 1, or are all 0.

    Args:
        boxes: ``(N, n, 5)``: left, top, right, bottom as shares of the image, and a class, 0 for none.
        teacher: Its map ``(N, C, H, W)``.
        regions: See :func:`region_hint`.
        background: Of ``split``: weight of all places outside boxes together; inside it is one less that.

    Example:
        >>> half = torch.tensor([[[0.0, 0.0, 0.5, 1.0, 1.0]]])
        >>> region_weights(half, torch.zeros(1, 1, 1, 4), "boxes", 0.0)
        tensor([[[0.5000, 0.5000, 0.0000, 0.0000]]])
    """
    count, _, height, width = teacher.shape
    if regions == "none":
        return teacher.new_full((count, height, width), 1.0 / (height * width))
    if regions == "attention":
        spread = teacher.square().mean(dim=1).flatten(1)
        total = spread.sum(dim=1, keepdim=True)
        return (spread / torch.where(total == 0, torch.ones_like(total), total)).view(count, height, width)
    if boxes is None:
        raise ValueError(f"regions: {regions} needs boxes")
    inside = inside_boxes(boxes, height, width)
    front = _shared(inside)
    if regions != "split":
        return front
    return (1.0 - background) * front + background * _shared(~inside)


def inside_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Places of a map that a box touches, ``(N, H, W)`` boolean; ``boxes`` as in :func:`region_weights`."""
    there = (boxes[..., 4] > 0)[..., None]
    left, top, right, bottom = (boxes[..., side, None] for side in range(4))
    x = torch.arange(width, device=boxes.device)
    y = torch.arange(height, device=boxes.device)
    columns = (x + 1 > left * width) & (x < right * width) & there  # (N, n, W)
    rows = (y + 1 > top * height) & (y < bottom * height) & there
    return (rows[..., :, None] & columns[..., None, :]).any(dim=1)


def _shared(mask: Tensor) -> Tensor:
    each = mask.float()
    return each / each.sum(dim=(1, 2), keepdim=True).clamp(min=1)


@matches("maps", weight=0.5, adapter=True)
def region_hint(
    student: Tensor,
    teacher: Tensor,
    *,
    regions: Regions = "boxes",
    background: Unit = 0.3,
    boxes: Tensor | None = None,
    where: Tensor | None = None,
) -> Tensor:
    """Squared difference of maps, where there is something to see.

    Most of an image is background, and would drown the objects in a plain mean.

    Formula:
        sum over places of w (mean over channels of (A(f_s) - f_t)^2), A the adapter; an image's w sum to 1

    Args:
        student: Adapted map ``(N, C, H, W)``.
        teacher: Map of the same shape.
        regions: Which places count: all alike (``none``), those in true ``boxes``, those in boxes that the
            teacher is ``confident`` of, both sides of the true boxes with weights of their own (``split``),
            or by the teacher's ``attention``, the mean square of its channels.
        background: Of ``split``: the weight of everything outside boxes.
        boxes: ``(N, n, 5)``: corners as shares of the image, and a class, 0 where there is no box.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If the shapes differ, or boxes are needed and missing.

    Reference:
        Chen and others, "Learning Efficient Object Detection Models with Knowledge Distillation", 2017,
        https://papers.nips.cc/paper/6676; Wang and others, "Distilling Object Detectors with Fine-grained
        Feature Imitation", 2019, https://arxiv.org/abs/1906.03609; Yang and others, "Focal and Global
        Knowledge Distillation for Detectors", 2021, https://arxiv.org/abs/2111.11837

    Example:
        >>> region_hint(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), regions="none")
        tensor([1.])
    """
    _check_same(student, teacher)
    student, teacher = blanked(student, where), blanked(teacher, where)
    weights = region_weights(boxes, teacher, regions, background).to(student.dtype)
    return masked(((student - teacher).square().mean(dim=1) * weights).flatten(1).sum(dim=1), where)


def _check_same(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected answers of one shape to the same regions, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}"
        )
