"""Contract rows: losses with parameters or memory, on fixed tensors in place of what they learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.contracts.row import Row, maps, tokens, vectors


def with_variance(channels: int) -> Callable[..., Tensor]:
    def call(
        function: Callable[..., Tensor],
        student: Tensor,
        teacher: Tensor,
        where: Tensor | None,
        options: dict[str, Any],
    ) -> Tensor:
        variance = torch.linspace(1.5, 3.0, channels, dtype=torch.float64)
        return function(student, teacher, variance=variance, where=where, **options)

    return call


def with_memory(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """All samples stand for row 0 of the memories, so that any subset of them does."""
    generator = torch.Generator().manual_seed(0)
    memories = torch.randn(2, 9, 5, generator=generator, dtype=torch.float64)
    ours, theirs = torch.nn.functional.normalize(memories, dim=-1)
    return function(
        student,
        teacher,
        student_memory=ours,
        teacher_memory=theirs,
        index=torch.zeros(len(student), dtype=torch.int64),
        negatives=torch.tensor([3, 0, 8, 5]),
        where=where,
        **options,
    )


ROWS: dict[str, Row] = {
    "contrastive": Row(vectors, call=with_memory),
    "contrastive T1": Row(vectors, {"temperature": 1.0}, call=with_memory),
    "factor_transfer": Row(maps),
    "variational_information": Row(maps, call=with_variance(3)),
    "variational_information vectors": Row(vectors, call=with_variance(5)),
    "variational_information tokens": Row(tokens, call=with_variance(4)),
}
