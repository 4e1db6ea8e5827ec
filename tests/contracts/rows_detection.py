"""Contract rows: what a detector's heads answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.contracts.row import Row, logits, maps, vectors


def classed(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """The labels are the teacher's choice."""
    return function(student, teacher, teacher.nan_to_num().argmax(dim=-1), where=where, **options)


def bounded(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """The true boxes lie a little beside the teacher's, so that the student's are farther from them."""
    precise = teacher.detach() if teacher.dtype == torch.float64 else teacher.detach().float()
    target = precise.nan_to_num(posinf=0.0, neginf=0.0) + 0.1
    return function(student, teacher, target, where=where, **options)


def cornered(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Boxes of the first four numbers, whose corners are in order."""

    def boxes(raw: Tensor) -> Tensor:
        raw = raw if raw.dtype == torch.float64 else raw.float()
        first = raw[..., :2].clamp(-50.0, 50.0)
        return torch.cat([first, first + 0.5 + raw[..., 2:4].clamp(-50.0, 50.0).abs()], dim=-1)

    return function(boxes(student), boxes(teacher), where=where, **options)


def answered(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """The teacher's logits stand for what its boxes say."""
    precise = teacher if teacher.dtype == torch.float64 else teacher.float()
    return function(student, precise.softmax(dim=-1), where=where, **options)


ROWS: dict[str, Row] = {
    "weighted_classes": Row(logits, call=classed),
    "weighted_classes of the teacher": Row(logits, {"hard": 0.0, "temperature": 2.0}, call=classed),
    "weighted_scores": Row(logits, call=classed),
    "weighted_scores plain": Row(logits, {"hard": 0.5, "focus": 0.0}, call=classed),
    "bounded_regression": Row(vectors, call=bounded, teacher_gradient=False),
    "teacher_boxes": Row(vectors, call=cornered, compiles=False),  # its boxes are made outside
    "teacher_boxes by sides": Row(vectors, {"form": "l1"}, call=cornered, compiles=False),
    "response": Row(logits, call=answered),
    "response of scores": Row(logits, {"exclusive": False}, call=answered),
    "region_hint": Row(maps, {"regions": "none"}),
    "region_hint attention": Row(maps, {"regions": "attention"}),
}
