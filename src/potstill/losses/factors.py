"""Factors: a teacher's maps paraphrased into fewer channels, which the student learns to translate into.

Shapes: maps ``(N, C, H, W)``; a value per sample, ``(N,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from potstill.losses._declare import Range, matches
from potstill.losses.reduce import blanked, masked
from potstill.losses.relations._pairs import unit_rows

__all__ = ["FactorTransfer", "Paraphraser", "factor_transfer"]

Rate = Annotated[float, Range(above=0, most=1)]
SLOPE = 0.1
"""Of the leaky ReLUs."""


def _block(layer: type[nn.Conv2d] | type[nn.ConvTranspose2d], inside: int, outside: int) -> nn.Sequential:
    """A 3x3 layer with norm and leaky ReLU.

    The norm is over each sample by itself where the authors have batch norm: values then depend neither
    on the other samples, masked ones among them, nor on how a batch is spread over processes.
    """
    return nn.Sequential(
        layer(inside, outside, 3, padding=1, bias=False), nn.GroupNorm(1, outside), nn.LeakyReLU(SLOPE)
    )


def _encoder(channels: int, factors: int) -> nn.Sequential:
    return nn.Sequential(
        _block(nn.Conv2d, channels, channels),
        _block(nn.Conv2d, channels, factors),
        _block(nn.Conv2d, factors, factors),
    )


class Paraphraser(nn.Module):
    """Three convolutions from maps to factors and three transposed ones back.

    Args:
        channels: Of the teacher's maps.
        factors: Channels of the factors.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factors)
        last = nn.ConvTranspose2d(channels, channels, 3, padding=1, bias=False)
        self.decoder = nn.Sequential(
            _block(nn.ConvTranspose2d, factors, factors),
            _block(nn.ConvTranspose2d, factors, channels),
            nn.Sequential(last, nn.GroupNorm(1, channels)),
        )

    def forward(self, maps: Tensor, *, where: Tensor | None = None) -> Tensor:
        """How badly the maps are reconstructed from their factors.

        Args:
            maps: The teacher's, ``(N, C, H, W)``.
            where: Boolean ``(N,)``: which samples count.

        Returns:
            Mean squared error per sample, ``(N,)``.
        """
        maps = blanked(maps, where).to(next(self.parameters()).dtype)
        errors: Tensor = self.decoder(self.encoder(maps)) - maps
        return masked(errors.square().flatten(1).mean(dim=1), where)


class FactorTransfer(nn.Module):
    """The student's translator, and the teacher's paraphraser that is trained first and then stays.

    :attr:`paraphraser` moves with this module but is neither among its parameters nor in its state: a
    scheme trains it in a stage of its own, with an optimiser of its own.

    Args:
        student: Shape of the student's maps, batch first.
        teacher: Shape of the teacher's.
        samples: Not needed.
        rate: Above 0, at most 1: channels of the factors as a share of the teacher's.
    """

    paraphraser: Paraphraser

    def __init__(
        self,
        student: Sequence[int],
        teacher: Sequence[int],
        *,
        samples: int | None = None,
        rate: Rate = 0.5,
    ) -> None:
        super().__init__()
        factors = max(1, round(rate * teacher[1]))
        self.translator = _encoder(student[1], factors)
        object.__setattr__(self, "paraphraser", Paraphraser(teacher[1], factors))

    def forward(
        self, student: Tensor, teacher: Tensor, *, where: Tensor | None = None, index: Tensor | None = None
    ) -> Tensor:
        """:func:`factor_transfer` of both networks' factors, the bigger ones average-pooled.

        Args:
            student: Maps ``(N, C, H, W)``.
            teacher: Maps ``(N, C', H', W')``.
            where: Boolean ``(N,)``: which samples count.
            index: Not needed.

        Returns:
            One value per sample, ``(N,)``.
        """
        dtype = next(self.parameters()).dtype
        ours = self.translator(blanked(student, where).to(dtype))
        with torch.no_grad():  # the paraphraser is frozen, and so is what it reads
            theirs = self.paraphraser.encoder(blanked(teacher, where).to(dtype))
        height, width = (min(sides) for sides in zip(ours.shape[2:], theirs.shape[2:], strict=True))
        ours, theirs = (adaptive_avg_pool2d(each, (height, width)) for each in (ours, theirs))
        return factor_transfer(ours, theirs, where=where)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FactorTransfer:
        """Move or cast the paraphraser along with the rest."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.paraphraser._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


@matches("maps", weight=200.0, at="last", learns=FactorTransfer)
def factor_transfer(student: Tensor, teacher: Tensor, *, where: Tensor | None = None) -> Tensor:
    """Distance of the directions of both networks' factors.

    In a recipe :class:`FactorTransfer` makes the factors: a paraphraser learns to reconstruct the teacher's
    maps from them in the first tenth of the run, then stays as it is; the student and its translator learn
    in the rest. All channels are compared, each at its position.

    Formula:
        mean of |n(flat(F_s)) - n(flat(F_t))|, n the L2 norm, F_s = translator(f_s), F_t = paraphraser(f_t)

    Args:
        student: Factors ``(N, K, H, W)``.
        teacher: Factors of the same shape.
        where: Boolean ``(N,)``: which samples count.

    Returns:
        One value per sample, ``(N,)``, never below 0.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", 2018,
        https://arxiv.org/abs/1802.04977

    Example:
        >>> factor_transfer(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[2.0, 0.0]]]]))
        tensor([0.6000])
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected factors of one shape, got student {tuple(student.shape)} and teacher "
            f"{tuple(teacher.shape)}"
        )
    ours, theirs = (unit_rows(blanked(each, where).flatten(1)) for each in (student, teacher))
    return masked((ours - theirs).abs().mean(dim=1), where)
