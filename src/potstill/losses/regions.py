"""Maps of detectors, compared where there is something to see."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from potstill.losses._declare import Unit, matches
from potstill.losses.reduce import blanked, masked

__all__ = ["inside_boxes", "near_boxes", "region_hint", "region_weights"]

Regions = Literal["none", "boxes", "near", "confident", "split", "attention"]
NEAR = 0.5
"""Share of the best overlap from which on a place is near an object, that of Wang and others."""


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
    if regions == "near":
        return _shared(near_boxes(boxes, height, width))
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


def near_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Places near an object, ``(N, H, W)`` boolean; ``boxes`` as in :func:`region_weights`.

    An anchor of the object's own size stands at every place; those count whose overlap with the object is
    over half that of the best, and the one that holds its middle, however small it is. The authors take the
    detector's own anchors.

    Example:
        >>> near_boxes(torch.tensor([[[0.0, 0.0, 0.5, 1.0, 1.0]]]), 1, 4)
        tensor([[[ True,  True, False, False]]])
    """
    left, top, right, bottom = (boxes[..., side, None] for side in range(4))  # (N, n, 1)
    off_x, off_y = (
        (torch.arange(places, device=boxes.device) + 0.5) / places - (low + high) / 2
        for places, low, high in ((width, left, right), (height, top, bottom))
    )
    across = (right - left - off_x.abs()).clamp(min=0)  # (N, n, W)
    down = (bottom - top - off_y.abs()).clamp(min=0)  # (N, n, H)
    shared = down[..., :, None] * across[..., None, :]  # (N, n, H, W)
    size = ((right - left) * (bottom - top))[..., None]
    overlap = shared / (2 * size - shared).clamp(min=1e-12)
    near = overlap > NEAR * overlap.amax(dim=(2, 3), keepdim=True)
    middle = (off_y.abs() <= 0.5 / height)[..., :, None] & (off_x.abs() <= 0.5 / width)[..., None, :]
    return ((near | middle) & (boxes[..., 4] > 0)[..., None, None]).any(dim=1)


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
        regions: Which places count: all alike (``none``), those in true ``boxes``, those ``near`` their
            middle (:func:`near_boxes`), those in boxes that the teacher is ``confident`` of, both sides of
            the true boxes with weights of their own (``split``), or by the teacher's ``attention``, the mean
            square of its channels.
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
    if student.shape != teacher.shape:
        raise ValueError(f"expected maps of one shape, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    student, teacher = blanked(student, where), blanked(teacher, where)
    weights = region_weights(boxes, teacher, regions, background).to(student.dtype)
    return masked(((student - teacher).square().mean(dim=1) * weights).flatten(1).sum(dim=1), where)
