"""Where pixels go: crops, mirror images and rotations."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from potstill.augment.draws import Draws, Mode, Share, Transform
from potstill.losses import Range

__all__ = [
    "Flip",
    "PaddedCrop",
    "ResizedCrop",
    "Rotation",
    "affine",
    "box_sides",
    "check_ratio",
    "turned",
    "warped",
]


def check_ratio(ratio: tuple[float, float]) -> None:
    """Refuse what is no range of width over height."""
    if not 0 < ratio[0] <= ratio[1] < math.inf:
        raise ValueError(f"ratio: expected two numbers above 0 in order, got {list(ratio)}")


def box_sides(
    share: Tensor, at: Tensor, ratio: tuple[float, float], height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Sides of boxes of given areas whose width over height lies in a range as far as the image allows.

    Args:
        share: Area of each box over the image's, ``(N,)`` float64.
        at: Where in the logarithmic range of ratios, ``(N,)`` in [0, 1).
        ratio: Smallest and largest width over height.
        height: Height of the image.
        width: Width of the image.

    Returns:
        Heights and widths in whole pixels, from 1 to the image's, ``(N,)`` int64 each.
    """
    area = share * (height * width)
    low = (area / height**2).clamp_min(ratio[0]).log()  # a box that is narrower would be too high
    high = (width**2 / area).clamp_max(ratio[1]).log()
    chosen = (low + at * (high - low).clamp_min(0.0)).exp()
    rows = (area / chosen).sqrt().round().long().clamp(1, height)
    return rows, (area * chosen).sqrt().round().long().clamp(1, width)


def _sampled(images: Tensor, grid: Tensor, mode: Mode, padding: str) -> Tensor:
    """``grid_sample`` of images of any type; integers are rounded."""
    whole = not images.is_floating_point()
    pixels = images.float() if whole else images
    found = grid_sample(pixels, grid.to(pixels.dtype), mode=mode, padding_mode=padding, align_corners=False)
    return found.round_().to(images.dtype) if whole else found


def warped(images: Tensor, matrix: Tensor, mode: Mode) -> Tensor:
    """Images under affine maps of their own; what comes from outside is black.

    Args:
        images: ``(N, C, H, W)`` of any type.
        matrix: From where each pixel is taken, in pixels from the middle, ``(N, 2, 3)`` float64.
        mode: How to read between pixels.

    Example:
        >>> left = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
        >>> warped(torch.tensor([[[[1, 2, 3]]]]), left, "nearest").tolist()
        [[[[2, 3, 0]]]]
    """
    height, width = images.shape[2:]
    half = matrix.new_tensor([[0.5 * width], [0.5 * height]])
    theta = (matrix / half).float().to(images.device)[:, :, :, None, None]  # (N, 2, 3, 1, 1)
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[:, None]
    # Written out, not as a matrix product, whose rounding would depend on the size of the batch.
    grid = [theta[:, row, 0] * x + theta[:, row, 1] * y + theta[:, row, 2] for row in (0, 1)]
    return _sampled(images, torch.stack(grid, dim=3), mode, "zeros")


def turned(degrees: Tensor) -> Tensor:
    """The maps of counter-clockwise rotations about the middle, ``(N, 2, 3)``."""
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    return affine(cos, cos, -sin, 0, sin, cos, 0)


def affine(like: Tensor, *entries: float | Tensor) -> Tensor:
    """Maps ``(N, 2, 3)`` of six entries, numbers or one for each of ``like`` ``(N,)``."""
    return torch.stack([torch.zeros_like(like) + entry for entry in entries], dim=1).view(-1, 2, 3)


class Geometric(Transform):
    """A transform that moves pixels and does nothing else: whatever follows is changed as the images are."""

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Each image, moved."""
        return self.follow(images, draws, "bilinear")

    @abstractmethod
    def follow(self, pixels: Tensor, draws: Draws, mode: Mode) -> Tensor:
        """Pixels ``(N, c, H, W)``, moved."""


@dataclass(frozen=True, kw_only=True)
class PaddedCrop(Geometric):
    """Black pixels on every side, then the old size from a random place."""

    padding: Annotated[int, Range(least=1)]
    """Pixels on every side, fewer than the image has."""
    probability: Share = 1.0
    """Of a crop."""

    shorthand: ClassVar[str] = "padding"

    def check(self, images: Tensor) -> None:
        """Padding that is smaller than the image."""
        rows, columns = images.shape[2:]
        if self.padding >= min(rows, columns):
            raise ValueError(f"must be smaller than the image ({rows}x{columns}), got {self.padding}")

    def moves(self, height: int, width: int, draws: Draws) -> Sequence[Tensor]:
        """A step aside."""
        down, right = ((draws.whole(axis, 2 * self.padding + 1) - self.padding).double() for axis in (1, 2))
        return (affine(down, 1, 0, right, 0, 1, down),)

    def follow(self, pixels: Tensor, draws: Draws, mode: Mode) -> Tensor:
        """A window of each padded image."""
        rows, columns = pixels.shape[2:]
        places = 2 * self.padding + 1
        top, left = draws.whole(1, places).tolist(), draws.whole(2, places).tolist()
        padded = pad(pixels, (self.padding,) * 4)
        cuts = zip(padded, top, left, strict=True)  # views: nothing is copied but once, at the end
        return torch.stack([image[:, y : y + rows, x : x + columns] for image, y, x in cuts])


@dataclass(frozen=True, kw_only=True)
class Flip(Geometric):
    """A mirror image."""

    axis: Literal[2, 3] = 3
    """3 swaps left and right, 2 top and bottom."""
    probability: Share = 0.5
    """Of a mirror image."""

    shorthand: ClassVar[str] = "probability"

    def moves(self, height: int, width: int, draws: Draws) -> Sequence[Tensor]:
        """The other way round."""
        x, y = (-1, 1) if self.axis == 3 else (1, -1)
        return (affine(draws(0), x, 0, 0, 0, y, 0),)

    def follow(self, pixels: Tensor, draws: Draws, mode: Mode) -> Tensor:
        """All images mirrored."""
        return pixels.flip(self.axis)


@dataclass(frozen=True, kw_only=True)
class ResizedCrop(Geometric):
    """A box of random area and shape, brought back to the image's size (bilinear).

    As torchvision's ``RandomResizedCrop``, but a shape that does not fit is never drawn and so never has to
    be drawn again.
    """

    least: Annotated[float, Range(above=0, most=1)] = 0.08
    """Smallest area of the box, a share of the image's; the largest is the whole image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height."""
    probability: Share = 1.0
    """Of a crop."""

    shorthand: ClassVar[str] = "least"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def _box(self, height: int, width: int, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, columns = box_sides(draws.between(1, self.least, 1.0), draws(2), self.ratio, height, width)
        return draws.whole(3, height - rows + 1), draws.whole(4, width - columns + 1), rows, columns

    def moves(self, height: int, width: int, draws: Draws) -> Sequence[Tensor]:
        """The box, stretched over the image."""
        top, left, rows, columns = (side.double() for side in self._box(height, width, draws))
        x, y = left + columns / 2 - width / 2, top + rows / 2 - height / 2
        return (affine(top, columns / width, 0, x, 0, rows / height, y),)

    def follow(self, pixels: Tensor, draws: Draws, mode: Mode) -> Tensor:
        """A crop of each image."""
        return resized_boxes(pixels, *self._box(pixels.shape[2], pixels.shape[3], draws), mode)


def resized_boxes(
    images: Tensor, top: Tensor, left: Tensor, rows: Tensor, columns: Tensor, mode: Mode = "bilinear"
) -> Tensor:
    """A box of each image at the image's size; positions and sizes ``(N,)`` in pixels."""
    height, width = images.shape[2:]

    def places(begin: Tensor, length: Tensor, side: int) -> Tensor:
        """Where along one side each new pixel is read, -1 to 1, never outside the box: ``(N, side)``."""
        begin, length = begin.double()[:, None], length.double()[:, None]
        within = (torch.arange(side) + 0.5).to(begin.device) * (length / side)
        read = begin + torch.minimum(within.clamp_min(0.5), length - 0.5)
        return (read * (2 / side) - 1).float().to(images.device)

    x = places(left, columns, width)[:, None, :].expand(-1, height, -1)
    y = places(top, rows, height)[:, :, None].expand(-1, -1, width)
    return _sampled(images, torch.stack([x, y], dim=3), mode, "border")


@dataclass(frozen=True, kw_only=True)
class Rotation(Geometric):
    """A rotation about the middle (bilinear); corners from outside the image are black."""

    degrees: Annotated[float, Range(least=0, most=180)]
    """Largest angle, to either side."""
    probability: Share = 1.0
    """Of a rotation."""

    shorthand: ClassVar[str] = "degrees"

    def moves(self, height: int, width: int, draws: Draws) -> Sequence[Tensor]:
        """A turn."""
        return (turned(draws.between(1, -self.degrees, self.degrees)),)

    def follow(self, pixels: Tensor, draws: Draws, mode: Mode) -> Tensor:
        """Each image at its angle."""
        (turn,) = self.moves(pixels.shape[2], pixels.shape[3], draws)
        return warped(pixels, turn, mode)
