"""Boxes that are covered: Cutout and random erasing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from potstill.augment.draws import Draws, Share, Transform, across
from potstill.augment.geometry import box_sides, check_ratio
from potstill.losses import Range

__all__ = ["Cutout", "Erasing", "in_boxes"]

Fill = Literal["black", "mean"]


def in_boxes(images: Tensor, top: Tensor, left: Tensor, bottom: Tensor, right: Tensor) -> Tensor:
    """Whether a pixel lies in its image's box (ends excluded), ``(N, 1, H, W)``."""
    y = torch.arange(images.shape[2], device=images.device)[:, None]
    x = torch.arange(images.shape[3], device=images.device)
    top, left, bottom, right = (across(side, images) for side in (top, left, bottom, right))
    return (top <= y) & (y < bottom) & (left <= x) & (x < right)


def _covered(images: Tensor, boxes: Tensor, fill: Fill) -> Tensor:
    if fill == "black":
        return images.masked_fill(boxes, 0)
    total = images.long().sum(dim=(2, 3), keepdim=True)  # whole numbers: the same in a batch of any size
    mean = total // (images.shape[2] * images.shape[3])
    return torch.where(boxes, mean.to(images.dtype), images)


def _check_fill(images: Tensor, fill: Fill) -> None:
    if fill == "mean" and images.is_floating_point():
        raise ValueError("fill: mean needs images of integers 0 to 255; floats are filled with 0 (black)")


@dataclass(frozen=True, kw_only=True)
class Cutout(Transform):
    """A square about a random pixel is covered; what lies beyond the border is cut off.

    Reference:
        DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
        https://arxiv.org/abs/1708.04552
    """

    size: Annotated[int, Range(least=1)]
    """Side of the square in pixels."""
    fill: Fill = "black"
    """What covers it: 0, or the ``mean`` colour of the image."""
    probability: Share = 1.0
    """Of a square."""

    shorthand: ClassVar[str] = "size"

    def check(self, images: Tensor) -> None:
        """A square that is no larger than the image."""
        height, width = images.shape[2:]
        if self.size > min(height, width):
            raise ValueError(f"must be at most the image's side ({height}x{width}), got {self.size}")
        _check_fill(images, self.fill)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Each image with a square covered."""
        top = draws.whole(1, images.shape[2]) - self.size // 2
        left = draws.whole(2, images.shape[3]) - self.size // 2
        return _covered(images, in_boxes(images, top, left, top + self.size, left + self.size), self.fill)


@dataclass(frozen=True, kw_only=True)
class Erasing(Transform):
    """A box of random area and shape, inside the image, is covered.

    Reference:
        Zhong and others, "Random Erasing Data Augmentation", 2017, https://arxiv.org/abs/1708.04896
    """

    probability: Share = 0.5
    """Of a box."""
    area: tuple[float, float] = (0.02, 0.33)
    """Smallest and largest area, shares of the image's."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest width over height."""
    fill: Fill = "black"
    """What covers it: 0, or the ``mean`` colour of the image."""

    shorthand: ClassVar[str] = "probability"

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area: expected two shares above 0 in order, got {list(self.area)}")
        check_ratio(self.ratio)

    def check(self, images: Tensor) -> None:
        """A colour to fill with."""
        _check_fill(images, self.fill)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Each image with a box covered."""
        height, width = images.shape[2:]
        rows, columns = box_sides(draws.between(1, *self.area), draws(2), self.ratio, height, width)
        top, left = draws.whole(3, height - rows + 1), draws.whole(4, width - columns + 1)
        return _covered(images, in_boxes(images, top, left, top + rows, left + columns), self.fill)
