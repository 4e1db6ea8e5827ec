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


ROWS: dict[str, Row] = {
    "weighted_classes": Row(logits, call=classed),
    "weighted_classes of the teacher": Row(logits, {"hard": 0.0, "temperature": 2.0}, call=classed),
    "weighted_scores": Row(logits, call=classed),
    "weighted_scores plain": Row(logits, {"hard": 0.5, "focus": 0.0}, call=classed),
    "bounded_regression": Row(vectors, call=bounded, teacher_gradient=False),
    "region_hint": Row(maps, {"regions": "none"}),
    "region_hint attention": Row(maps, {"regions": "attention"}),
}
