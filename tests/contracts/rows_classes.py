"""Contract rows: the right class against the others, and the order of classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tests.contracts.row import Row, logits


def _with_the_best_class(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """The target is the teacher's choice."""
    return function(student, teacher, teacher.nan_to_num().argmax(dim=-1), where=where, **options)


def _with_the_worst_class(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """The target is what the teacher thinks least likely."""
    return function(student, teacher, teacher.nan_to_num().argmin(dim=-1), where=where, **options)


ROWS: dict[str, Row] = {
    "decoupled_kl": Row(logits, call=_with_the_best_class),
    "decoupled_kl T1": Row(logits, {"temperature": 1.0}, call=_with_the_best_class),
    "decoupled_kl of a wrong teacher": Row(
        logits, {"temperature": 1.0, "beta": 8.0}, call=_with_the_worst_class
    ),
    "dist": Row(logits),
    "dist T1": Row(logits, {"temperature": 1.0}),
    "dist inter": Row(logits, {"intra": 0.0}),
}
