"""Contract rows: relations within a sample or between layers, and distributions over positions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.contracts.row import Pair, Row, maps, vectors


def neighbours(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Two layers of each net from one tensor ``(N, C, H, W)``: three channels, the rest at half the size."""
    pairs = [(each[:, :3], each[:, 3:, ::2, ::2]) for each in (student, teacher)]
    return _called(function, pairs, where, options)


def layers(
    function: Callable[..., Tensor],
    student: Tensor,
    teacher: Tensor,
    where: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """Three layers of each net from one tensor ``(N, 3, 4, 4)``: maps, tokens and vectors."""
    tuples = [(each, each[:, :2, 1], each[:, 1:, 2, 3]) for each in (student, teacher)]
    return _called(function, tuples, where, options)


def _called(
    function: Callable[..., Tensor], nets: list[Any], where: Tensor | None, options: dict[str, Any]
) -> Tensor:
    with warnings.catch_warnings():  # dynamo looks whether the slices, which are no leaves, have a gradient
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        return function(*nets, where=where, **options)


def many_channels(count: int = 6) -> Pair:
    """Maps ``(N, 6, 2, 2)``, float64: fewer positions than channels."""
    generator = torch.Generator().manual_seed(4)
    student, teacher = (
        torch.randn(count, 6, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher


def big_maps(count: int = 6) -> Pair:
    """Maps ``(N, 8, 8, 8)``, float64: gradients of a fourth power fit in float16."""
    generator = torch.Generator().manual_seed(5)
    student, teacher = (
        torch.randn(count, 8, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return student, teacher


ROWS: dict[str, Row] = {
    "batch_channel_correlation": Row(vectors),
    "channel_correlation": Row(maps),
    "channel_distribution": Row(maps),
    "channel_distribution T1": Row(maps, {"temperature": 1.0}),
    "fsp": Row(big_maps, call=neighbours),
    "gram": Row(big_maps),
    "layer_correlation": Row(maps, call=layers),
    "neuron_selectivity": Row(maps),
    "neuron_selectivity of many channels": Row(many_channels),
}
