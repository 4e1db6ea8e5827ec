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


ROWS: dict[str, Row] = {
    "variational_information": Row(maps, call=with_variance(3)),
    "variational_information vectors": Row(vectors, call=with_variance(5)),
    "variational_information tokens": Row(tokens, call=with_variance(4)),
}
