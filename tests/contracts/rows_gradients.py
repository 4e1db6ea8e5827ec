"""Contract rows: where a network is sensitive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.contracts.row import Row, maps


def sensitive(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Nets of two classes whose logit of the true one has the given tensors as its gradient at the input."""
    target = torch.zeros(student.shape[0], dtype=torch.int64)
    return function(linear(student), linear(teacher), target, where=where, **options)


def linear(slope: Tensor) -> tuple[Tensor, Tensor]:
    slope = slope if slope.dtype == torch.float64 else slope.float()
    pixels = torch.zeros_like(slope).detach().requires_grad_()
    true = (slope * pixels).flatten(1).sum(dim=1)
    return torch.stack([true, torch.zeros_like(true)], dim=1), pixels


def row(**options: Any) -> Row:
    return Row(maps, options, call=sensitive, teacher_gradient=False, compiles=False)


ROWS: dict[str, Row] = {
    "gradient_attention": row(),
    "gradient_attention logit": row(of="logit"),
    "gradient_attention paper": row(variant="paper"),
    "gradient_attention map": row(variant="map"),
}
