"""The head of one early exit: from a layer to the shape of the deepest features, and to an answer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from potstill.errors import UserError
from potstill.matching.adapters import kind_of
from potstill.models.cifar import Block

__all__ = ["Exit", "Heads", "pooled"]

Heads = Literal["separable", "residual"]
NARROW = 128  # a bottleneck may be this wide, however wide the deepest features are


class Exit(nn.Module):
    """A head on one layer: a bottleneck to the shape of the deepest features, then a linear layer.

    Maps go through convolutions, each halving the size until that of the deepest map: depth-wise separable
    ones and two more at that size, or residual blocks of full ones, none where the shape is the deepest's
    already. Tokens and vectors are pooled and normalised.

    Args:
        shape: Shape of the layer's tensor, batch first.
        deepest: Shape of the deepest features, batch first.
        num_classes: Number of classes.
        heads: Convolutions for maps, ``separable`` or ``residual``.
        blocks: Residual blocks at each size that the map is halved to, the deepest last; where it is halved
            less often, the last of them, and where more often, the first again.
        where: Dotted key for messages.

    Raises:
        UserError: If the one cannot be brought to the other.

    Reference:
        Zhang, Song, Gao, Chen, Bao, Ma, "Be Your Own Teacher: Improve the Performance of Convolutional Neural
        Networks via Self Distillation", 2019, https://arxiv.org/abs/1905.08094

    >>> import torch
    >>> logits, feature = Exit((2, 16, 32, 32), (2, 64, 8, 8), 10)(torch.zeros(2, 16, 32, 32))
    >>> logits.shape, feature.shape
    (torch.Size([2, 10]), torch.Size([2, 64, 8, 8]))
    """

    def __init__(
        self,
        shape: Sequence[int],
        deepest: Sequence[int],
        num_classes: int,
        *,
        heads: Heads = "separable",
        blocks: Sequence[int] = (1,),
        where: str = "",
    ) -> None:
        super().__init__()
        kinds = kind_of(shape), kind_of(deepest)
        self.maps = kinds == ("maps", "maps")
        self.size: tuple[int, int] | None = None
        channels, deepest_channels = _channels(shape), _channels(deepest)
        if self.maps:
            self.bottleneck: nn.Module = self._convolutions(shape, deepest, heads, blocks, where)
        elif "other" in kinds or kinds[1] == "maps":
            raise UserError(
                where,
                f"no exit can bring {kinds[0]} {tuple(shape)} to the deepest features, {kinds[1]} "
                f"{tuple(deepest)}; choose another layer",
            )
        else:
            norm = nn.LayerNorm(channels)
            same = channels == deepest_channels
            self.bottleneck = norm if same else nn.Sequential(norm, nn.Linear(channels, deepest_channels))
        self.head = nn.Linear(deepest_channels, num_classes)

    def _convolutions(
        self, shape: Sequence[int], deepest: Sequence[int], heads: Heads, blocks: Sequence[int], where: str
    ) -> nn.Sequential:
        channels, size, goal = shape[1], tuple(shape[2:]), tuple(deepest[2:])
        if any(ours < theirs for ours, theirs in zip(size, goal, strict=True)):
            raise UserError(
                where,
                f"its maps {tuple(shape)} are smaller than the deepest {tuple(deepest)}; choose another",
            )
        widths = [channels]
        while all(-(-ours // 2) >= theirs for ours, theirs in zip(size, goal, strict=True)) and size != goal:
            widths.append(min(2 * widths[-1], deepest[1], max(NARROW, deepest[1] // 8)))
            size = tuple(-(-side // 2) for side in size)
        made: list[nn.Module] = []
        if heads == "separable":
            made += [_separable(before, width, stride=2) for before, width in pairwise(widths)]
            width = min(2 * widths[-1], deepest[1], max(NARROW, deepest[1] // 8))
            made += [_separable(widths[-1], width, stride=1), _separable(width, deepest[1], stride=1)]
        else:
            counts = _last(blocks, len(widths) - 1)
            for (before, width), count in zip(pairwise(widths), counts, strict=True):
                made.append(Block(before, width, stride=2))
                made += [Block(width, width, stride=1) for _ in range(count - 1)]
            if widths[-1] != deepest[1]:
                made.append(Block(widths[-1], deepest[1], stride=1))
        self.size = None if size == goal else (goal[0], goal[1])
        return nn.Sequential(*made)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Answer from a layer.

        Args:
            feature: Maps ``(N, C, H, W)``, tokens ``(N, L, C)`` or vectors ``(N, C)``.

        Returns:
            Logits ``(N, num_classes)``, and the bottleneck's features in the shape of the deepest: maps, or
            vectors ``(N, C)`` where the deepest are tokens or vectors.
        """
        feature = self.bottleneck(feature if self.maps else pooled(feature))
        if self.size is not None:
            feature = adaptive_avg_pool2d(feature, self.size)
        return self.head(pooled(feature)), feature


def _last(counts: Sequence[int], number: int) -> list[int]:
    """The last ``number`` of ``counts``, the first of them again where there are too few.

    >>> _last([3, 1], 1), _last([3, 1], 3)
    ([1], [3, 3, 1])
    """
    more = max(0, number - len(counts))
    return [*[counts[0]] * more, *counts[len(counts) - number + more :]]


def _channels(shape: Sequence[int]) -> int:
    return shape[1] if kind_of(shape) == "maps" else shape[-1]


def _separable(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_in, 3, stride, padding=1, groups=channels_in, bias=False),
        nn.Conv2d(channels_in, channels_out, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


def pooled(feature: Tensor) -> Tensor:
    """Mean over positions: maps ``(N, C, H, W)`` or tokens ``(N, L, C)`` to ``(N, C)``; vectors stay.

    >>> import torch
    >>> pooled(torch.ones(2, 5, 3)).shape
    torch.Size([2, 3])
    """
    if feature.dim() == 4:
        return feature.mean(dim=(2, 3))
    return feature.mean(dim=1) if feature.dim() == 3 else feature
