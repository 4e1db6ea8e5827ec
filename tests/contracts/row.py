"""One row of the contract suite: how a loss is called there, and on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


def _pair(shape: tuple[int, ...], seed: int, scale: float) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return student * scale, teacher * scale


def logits(count: int = 6) -> Pair:
    """Student's and teacher's logits ``(N, 5)``, float64."""
    return _pair((count, 5), seed=0, scale=2.0)


def vectors(count: int = 6) -> Pair:
    """Vectors ``(N, 5)``, float64."""
    return _pair((count, 5), seed=2, scale=1.0)


def tokens(count: int = 6) -> Pair:
    """Tokens ``(N, 3, 4)``, float64."""
    return _pair((count, 3, 4), seed=3, scale=1.0)


def maps(count: int = 6) -> Pair:
    """Maps ``(N, 3, 4, 4)``, float64."""
    return _pair((count, 3, 4, 4), seed=1, scale=1.0)


@dataclass(frozen=True)
class Row:
    """How one loss is called in the suite.

    Attributes:
        example: Makes student's and teacher's tensors.
        options: Options to test with.
        inductor: Whether it is also compiled with inductor (slow: three losses).
        call: ``(function, student, teacher, where, options) -> values`` for losses that take more, or
            other things, than two tensors.
        teacher_gradient: Whether the teacher gets a gradient: none through a step or an argmax.
        compiles: Whether it compiles: not what differentiates a graph that was made outside of it.
    """

    example: Callable[[int], Pair]
    options: dict[str, Any] = field(default_factory=dict)
    inductor: bool = False
    call: Callable[..., Tensor] | None = None
    teacher_gradient: bool = True
    compiles: bool = True
