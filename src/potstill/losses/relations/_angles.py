"""The N^3 angles of a batch, a few vertices at a time, with their gradient in closed form.

At vertex i, with squared distances q and w_j = 1 / d_ij (0 where the distance is 0):
cos_jk = corner_jk * scale_jk, corner_jk = q_ij + q_ik - q_jk, scale_jk = w_j w_k / 2. For slopes g, symmetric
in j and k like the cosines, the sum of g_jk cos_jk has the derivatives
by q_ij: 2 sum_k g scale - w_j^2 sum_k g cos; by q_jk: -g scale.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["angle_errors"]

# Triples worked on at once: what stays in a processor's cache, what fills an accelerator.
ON_CPU, ELSEWHERE = 2**16, 2**23


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
        count = max(1, (ON_CPU if ours.device.type == "cpu" else ELSEWHERE) // max(1, ours.numel()))
        for start in range(0, len(ours), count):
            rows = slice(start, start + count)
            cosines, scale = _cosines(ours, inverses[0], rows)
            targets, their_scale = _cosines(theirs, inverses[1], rows)
            errors = cosines - targets  # (rows, N, N)
            slopes = errors.clamp(-1, 1)  # the derivative of smooth L1
            total += (errors.sub_(slopes, alpha=0.5).mul_(slopes)).sum()
            if ours_wanted:
                _add_gradient(gradients[0], inverses[0], rows, slopes, cosines, scale)
            if theirs_wanted:
                _add_gradient(gradients[1], inverses[1], rows, slopes.neg_(), targets, their_scale)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        ours, theirs = ctx.saved_tensors
        return outer * ours, outer * theirs, None, None


def _inverse_lengths(squares: Tensor) -> Tensor:
    zero = squares == 0
    return torch.where(zero, squares, torch.where(zero, torch.ones_like(squares), squares).rsqrt())


def _cosines(squares: Tensor, inverse: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
    """Cosines at the vertices ``rows``, ``(rows, N, N)``, and the scale each came from."""
    arms, weights = squares[rows], inverse[rows]  # (rows, N)
    scale = (weights / 2).unsqueeze(2) * weights.unsqueeze(1)
    corners = (arms.unsqueeze(2) + arms.unsqueeze(1)).sub_(squares)
    return corners.mul_(scale), scale


def _add_gradient(
    gradient: Tensor, inverse: Tensor, rows: slice, slopes: Tensor, cosines: Tensor, scale: Tensor
) -> None:
    """Add the derivatives at the vertices ``rows``; overwrites ``cosines`` and ``scale``."""
    scale.mul_(slopes)
    gradient -= scale.sum(dim=0)
    arms = 2 * scale.sum(dim=2) - inverse[rows].square() * cosines.mul_(slopes).sum(dim=2)
    gradient[rows] += arms
