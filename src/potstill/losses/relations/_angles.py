"""The N^3 angles of a batch, a few vertices at a time, with their gradient in closed form.

At vertex i, with squared distances q and w_j = 1 / d_ij (0 where the distance is 0):
cos_jk = corner_jk * scale_jk, corner_jk = q_ij + q_ik - q_jk, scale_jk = w_j w_k / 2. For slopes g, symmetric
in j and k like the cosines, the sum of g_jk cos_jk has the derivatives
by q_ij: 2 sum_k g scale - w_j^2 sum_k g cos; by q_jk: -g scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["angle_errors"]

Tile = tuple[slice, slice]

# Triples worked on at once: what stays in a processor's cache, what fills an accelerator.
ON_CPU, ELSEWHERE = 2**15, 2**23


def angle_errors(ours: Tensor, theirs: Tensor) -> Tensor:
    """Sum over all triples of the smooth L1 between two nets' cosines.

    Args:
        ours: The student's squared distances ``(N, N)``, symmetric; an arm of 0 gives cosine 0.
        theirs: The teacher's.

    Returns:
        0-d.
    """
    wanted = [torch.is_grad_enabled() and squares.requires_grad for squares in (ours, theirs)]
    total: Tensor = _AngleErrors.apply(ours, theirs, *wanted)
    return total


class _AngleErrors(torch.autograd.Function):
    """The gradient is made along with the value: otherwise all N^3 cosines would have to be kept."""

    @staticmethod
    def forward(ctx: Any, ours: Tensor, theirs: Tensor, ours_wanted: bool, theirs_wanted: bool) -> Tensor:
        total = ours.new_zeros(())
        gradients = torch.zeros_like(ours), torch.zeros_like(theirs)
        inverses = _inverse_lengths(ours), _inverse_lengths(theirs)
        for tile in _tiles(len(ours), ON_CPU if ours.device.type == "cpu" else ELSEWHERE):
            cosines, scale = _cosines(ours, inverses[0], tile)
            targets, their_scale = _cosines(theirs, inverses[1], tile)
            errors = cosines - targets
            slopes = errors.clamp(-1, 1)  # the derivative of smooth L1
            total += errors.sub_(slopes, alpha=0.5).mul_(slopes).sum()
            if ours_wanted:
                _add_gradient(gradients[0], inverses[0], tile, slopes, cosines, scale)
            if theirs_wanted:
                _add_gradient(gradients[1], inverses[1], tile, slopes.neg_(), targets, their_scale)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        ours, theirs = ctx.saved_tensors
        return outer * ours, outer * theirs, None, None


def _tiles(count: int, most: int) -> Iterator[Tile]:
    """Slices of vertices i and of samples j, so that i x j x all samples k are at most ``most``."""
    across = min(count, max(1, most // count))
    down = max(1, most // (count * across))
    for vertex in range(0, count, down):
        for sample in range(0, count, across):
            yield slice(vertex, vertex + down), slice(sample, sample + across)


def _inverse_lengths(squares: Tensor) -> Tensor:
    zero = squares == 0
    return squares.masked_fill(zero, 1).rsqrt().masked_fill(zero, 0)


def _cosines(squares: Tensor, inverse: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """Cosines of a tile ``(vertices, samples, N)``, and the scale each came from."""
    vertices, samples = tile
    scale = (inverse[tile] / 2).unsqueeze(2) * inverse[vertices].unsqueeze(1)
    corners = (squares[tile].unsqueeze(2) + squares[vertices].unsqueeze(1)).sub_(squares[samples])
    return corners.mul_(scale), scale


def _add_gradient(
    gradient: Tensor, inverse: Tensor, tile: Tile, slopes: Tensor, cosines: Tensor, scale: Tensor
) -> None:
    """Add a tile's derivatives; overwrites ``cosines`` and ``scale``."""
    scale.mul_(slopes)
    gradient[tile[1]] -= scale.sum(dim=0)
    arms = 2 * scale.sum(dim=2) - inverse[tile].square() * cosines.mul_(slopes).sum(dim=2)
    gradient[tile] += arms
