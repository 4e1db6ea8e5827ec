"""Grouped convolutions lose whole groups: what a group of filters reads and what it writes go together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from potstill.prune.groups import Group, Slice

__all__ = ["is_grouped", "join_groups"]


def is_grouped(module: nn.Module) -> bool:
    """Whether a convolution has groups of several channels; one a channel, as a depth-wise one has, is none.

    >>> is_grouped(nn.Conv2d(4, 8, 1, groups=2)), is_grouped(nn.Conv2d(4, 4, 1, groups=4))
    (True, False)
    """
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    each = module.groups == module.in_channels == module.out_channels
    return module.groups > 1 and not each


def join_groups(model: nn.Module, found: Iterable[Group]) -> list[Group]:
    """Tie the channels before a grouped convolution to those behind it.

    A unit is then one of its groups of filters with all that it reads and writes, so that what is left is
    again a convolution of equal groups. Where channels meet several of them, they are left as they are.

    Args:
        model: The network.
        found: Units as tracing found them, channel by channel.
    """
    groups = list(found)
    for path, module in model.named_modules():
        if not is_grouped(module):
            continue
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        before = _having(groups, path, 1, module.in_channels)
        after = _having(groups, path, 0, module.out_channels)
        if before is None or after is None or before[0] is after[0]:
            continue
        (given, reading), (made, writing) = before, after
        units = module.groups
        homes_in = reading.index[:, 0] // (module.in_channels // units)
        homes_out = writing.index[:, 0] // (module.out_channels // units)
        others = [piece for piece in given.readers if piece is not reading]
        joined = replace(
            made,
            units=units,
            writers=(
                *_regrouped(given.writers, homes_in, units),
                *_regrouped(made.writers, homes_out, units),
            ),
            readers=(*_regrouped(others, homes_in, units), *_regrouped(made.readers, homes_out, units)),
        )
        groups = [joined if group is made else group for group in groups if group is not given]
    return groups


def _having(groups: Sequence[Group], path: str, dim: int, size: int) -> tuple[Group, Slice] | None:
    """The group that alone has all ``size`` channels of one side of a convolution, one a unit, and where."""
    for group in groups:
        for piece in group.readers if dim else group.writers:
            if (piece.module, piece.tensor, piece.dim) == (path, "weight", dim):
                alone = piece.index.shape == (size, 1) and len(set(piece.index.flatten().tolist())) == size
                return (group, piece) if alone else None
    return None


def _regrouped(pieces: Iterable[Slice], homes: Tensor, units: int) -> list[Slice]:
    """Slices of channels as slices of the units ``homes`` that the channels belong to."""
    order = homes.argsort(stable=True)
    return [replace(piece, index=piece.index[order].reshape(units, -1)) for piece in pieces]
