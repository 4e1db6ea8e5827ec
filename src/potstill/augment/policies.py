"""RandAugment and TrivialAugment: one of fourteen operations, at a strength, for each image.

The operations, their ranges and the nearest-pixel warps are torchvision's, pixel for pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from potstill.augment import colour
from potstill.augment.draws import Draws, Share, Transform
from potstill.augment.geometry import turned, warped
from potstill.errors import UserError
from potstill.losses import Range

__all__ = ["RandAugment", "TrivialAugment"]

BINS = 31
"""Number of strengths, 0 to 30."""


@dataclass(frozen=True)
class Reach:
    """How far the operations of a policy go at full strength; lengths are shares of the image's side."""

    shear: float
    share: float | None
    pixels: float
    degrees: float
    factor: float
    bits: int

    def translation(self, side: int) -> float:
        """Largest translation along ``side``, in pixels."""
        return self.pixels if self.share is None else self.share * side


RAND = Reach(shear=0.3, share=150 / 331, pixels=0, degrees=30, factor=0.9, bits=4)
TRIVIAL = Reach(shear=0.99, share=None, pixels=32, degrees=135, factor=0.99, bits=6)

Operation = Callable[[Tensor, Tensor, Tensor, Reach], Tensor]
"""Images, strength ``(N,)`` 0 to 1, the same with a sign, and how far to go."""


def _map(signed: Tensor, *entries: float | Tensor) -> Tensor:
    return torch.stack([torch.zeros_like(signed) + entry for entry in entries], dim=1).view(-1, 2, 3)


def _shear(images: Tensor, amount: Tensor, axis: int) -> Tensor:
    """About the upper left corner; along x for axis 0."""
    height, width = images.shape[2:]
    if axis == 0:
        return warped(images, _map(amount, 1, amount, amount * height / 2, 0, 1, 0), "nearest")
    return warped(images, _map(amount, 1, 0, 0, amount, 1, amount * width / 2), "nearest")


def _move(images: Tensor, amount: Tensor, axis: int) -> Tensor:
    shift = -amount.trunc()
    x, y = (shift, 0.0) if axis == 0 else (0.0, shift)
    return warped(images, _map(amount, 1, 0, x, 0, 1, y), "nearest")


def _torchvision(name: str) -> Operation:
    def call(images: Tensor, *_strengths: Any) -> Tensor:
        try:
            from torchvision.transforms.v2 import functional
        except ImportError as error:
            raise UserError("augment", "policies need torchvision: pip install 'potstill[vision]'") from error
        changed: Tensor = getattr(functional, name)(images)
        return changed

    return call


OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, _level, _signed, _reach: images,
    "shear_x": lambda images, _level, signed, reach: _shear(images, signed * reach.shear, 0),
    "shear_y": lambda images, _level, signed, reach: _shear(images, signed * reach.shear, 1),
    "translate_x": lambda images, _level, signed, reach: _move(
        images, signed * reach.translation(images.shape[3]), 0
    ),
    "translate_y": lambda images, _level, signed, reach: _move(
        images, signed * reach.translation(images.shape[2]), 1
    ),
    "rotate": lambda images, _level, signed, reach: warped(images, turned(signed * reach.degrees), "nearest"),
    "brightness": lambda images, _level, signed, reach: colour.brightness(images, 1 + signed * reach.factor),
    "saturation": lambda images, _level, signed, reach: colour.saturation(images, 1 + signed * reach.factor),
    "contrast": lambda images, _level, signed, reach: colour.contrast(images, 1 + signed * reach.factor),
    "sharpness": lambda images, _level, signed, reach: colour.sharpness(images, 1 + signed * reach.factor),
    "posterize": lambda images, level, _signed, reach: colour.posterize(
        images, (8 - level * reach.bits).round()
    ),
    "solarize": lambda images, level, _signed, _reach: colour.solarize(images, 255 * (1 - level)),
    "autocontrast": _torchvision("autocontrast"),
    "equalize": _torchvision("equalize"),
}


def operated(images: Tensor, which: Tensor, level: Tensor, negative: Tensor, reach: Reach) -> Tensor:
    """Each image under one operation.

    Args:
        images: ``(N, C, H, W)`` uint8.
        which: Place in :data:`OPERATIONS`, ``(N,)``.
        level: Strength, 0 to 1, ``(N,)`` float64.
        negative: Where operations with two directions take the other one, ``(N,)``.
        reach: How far they go.
    """
    changed = images.clone()
    signed = torch.where(negative, -level, level)
    for place, operation in enumerate(OPERATIONS.values()):
        rows = (which == place).nonzero()[:, 0]
        if len(rows):
            there = rows.to(images.device)
            changed[there] = operation(images[there], level[rows], signed[rows], reach)
    return changed


@dataclass(frozen=True, kw_only=True)
class RandAugment(Transform):
    """Several random operations of one strength.

    Reference:
        Cubuk and others, "RandAugment: Practical automated data augmentation with a reduced search space",
        2019, https://arxiv.org/abs/1909.13719
    """

    magnitude: Annotated[int, Range(least=0, most=BINS - 1)] = 9
    """Strength of all operations, 0 to 30."""
    operations: Annotated[int, Range(least=1, most=20)] = 2
    """How many, one after the other."""
    probability: Share = 1.0
    """Of any change."""

    shorthand: ClassVar[str] = "magnitude"

    def check(self, images: Tensor) -> None:
        """Bytes only."""
        colour.check_bytes(images)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Each image under operations of its own."""
        level = torch.full_like(draws(0), self.magnitude / (BINS - 1))
        for step in range(self.operations):
            which = draws.whole(1 + 2 * step, len(OPERATIONS))
            images = operated(images, which, level, draws(2 + 2 * step) < 0.5, RAND)
        return images


@dataclass(frozen=True, kw_only=True)
class TrivialAugment(Transform):
    """One random operation of a random strength, of a wide range.

    Reference:
        Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021,
        https://arxiv.org/abs/2103.10158
    """

    probability: Share = 1.0
    """Of any change."""

    shorthand: ClassVar[str] = "probability"

    def check(self, images: Tensor) -> None:
        """Bytes only."""
        colour.check_bytes(images)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Each image under an operation of its own."""
        level = draws.whole(2, BINS).double() / (BINS - 1)
        return operated(images, draws.whole(1, len(OPERATIONS)), level, draws(3) < 0.5, TRIVIAL)
