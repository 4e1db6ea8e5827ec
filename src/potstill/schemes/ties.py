"""Gradients of zero for what no part of the loss looks at: DDP waits for every parameter, in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from potstill.batch import Share

__all__ = ["tied"]


def tied(parts: dict[str, Share], idle: Sequence[Tensor]) -> dict[str, Share]:
    """The same parts, the first of which also reaches the ``idle`` tensors, with a gradient of exactly 0.

    >>> parameter = torch.ones(2, requires_grad=True)
    >>> loss = torch.tensor(3.0, requires_grad=True)
    >>> tied({"labels": Share(loss, 1.0, 1.0)}, [parameter])["labels"].total.backward()
    >>> parameter.grad
    tensor([0., 0.])
    """
    if not idle or not parts:
        return parts
    name, part = next(iter(parts.items()))
    return {**parts, name: replace(part, total=_Tied.apply(part.total, *idle))}


class _Tied(torch.autograd.Function):
    """The first tensor unchanged; the others get a gradient of exactly 0."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, *idle: Tensor) -> Tensor:
        ctx.save_for_backward(*idle)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients[0], *(torch.zeros_like(tensor) for tensor in ctx.saved_tensors)
