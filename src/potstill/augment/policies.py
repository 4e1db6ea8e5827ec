"""RandAugment and TrivialAugment: one of fourteen operations, at a strength, for each image.

The operations, their ranges and the nearest-pixel warps are torchvision's, pixel for pixel.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from potstill.augment import colour
from potstill.augment.draws import Draws, Mode, Share, Transform
from potstill.augment.geometry import affine, turned, warped
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


Maps = Callable[[Tensor, Reach, int, int], Tensor]
"""Signed strength, how far to go, height and width of the image; gives affine maps."""


def _shear(amount: Tensor, height: int, width: int, axis: int) -> Tensor:
    """About the upper left corner; along x for axis 0."""
    if axis == 0:
        return affine(amount, 1, amount, amount * height / 2, 0, 1, 0)
    return affine(amount, 1, 0, 0, amount, 1, amount * width / 2)


def _move(amount: Tensor, axis: int) -> Tensor:
    shift = -amount.trunc()
    x, y = (shift, 0.0) if axis == 0 else (0.0, shift)
    return affine(amount, 1, 0, x, 0, 1, y)


MOVES: dict[str, Maps] = {
    "shear_x": lambda signed, reach, height, width: _shear(signed * reach.shear, height, width, 0),
    "shear_y": lambda signed, reach, height, width: _shear(signed * reach.shear, height, width, 1),
    "translate_x": lambda signed, reach, _height, width: _move(signed * reach.translation(width), 0),
    "translate_y": lambda signed, reach, height, _width: _move(signed * reach.translation(height), 1),
    "rotate": lambda signed, reach, _height, _width: turned(signed * reach.degrees),
}
"""What moves pixels, and whatever belongs to them."""


def _warp(name: str) -> Operation:
    def call(images: Tensor, _level: Tensor, signed: Tensor, reach: Reach) -> Tensor:
        return warped(images, MOVES[name](signed, reach, *images.shape[2:]), "nearest")

    return call


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
    **{name: _warp(name) for name in MOVES},
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


def moved(which: Tensor, signed: Tensor, reach: Reach, height: int, width: int) -> Tensor:
    """The maps of one operation an image, ``(N, 2, 3)``: of what moves nothing, the identity."""
    maps = affine(signed, 1, 0, 0, 0, 1, 0)
    for place, name in enumerate(OPERATIONS):
        if name in MOVES:
            chosen = (which == place)[:, None, None]
            maps = torch.where(chosen, MOVES[name](signed, reach, height, width), maps)
    return maps


Step = tuple[Tensor, Tensor, Tensor]
"""Of one operation an image: its place, its strength, whether it goes the other way; ``(N,)`` each."""


class Policy(Transform):
    """Operations one after the other, chosen by an image's draws."""

    reach: ClassVar[Reach]

    @abstractmethod
    def steps(self, draws: Draws) -> Sequence[Step]:
        """What happens, in order."""

    def check(self, images: Tensor) -> None:
        """Bytes only."""
        colour.check_bytes(images)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Each image under operations of its own."""
        for step in self.steps(draws):
            images = operated(images, *step, self.reach)
        return images

    def moves(self, height: int, width: int, draws: Draws) -> Sequence[Tensor]:
        """The maps of those that move pixels."""
        return [
            moved(which, torch.where(negative, -level, level), self.reach, height, width)
            for which, level, negative in self.steps(draws)
        ]

    def follow(self, pixels: Tensor, draws: Draws, mode: Mode) -> Tensor:
        """Moved, and read at the nearest pixel as the images are."""
        for maps in self.moves(pixels.shape[2], pixels.shape[3], draws):
            pixels = warped(pixels, maps, "nearest")
        return pixels


@dataclass(frozen=True, kw_only=True)
class RandAugment(Policy):
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
    reach: ClassVar[Reach] = RAND

    def steps(self, draws: Draws) -> Sequence[Step]:
        """Each with a sign of its own."""
        level = torch.full_like(draws(0), self.magnitude / (BINS - 1))
        return [
            (draws.whole(1 + 2 * step, len(OPERATIONS)), level, draws(2 + 2 * step) < 0.5)
            for step in range(self.operations)
        ]


@dataclass(frozen=True, kw_only=True)
class TrivialAugment(Policy):
    """One random operation of a random strength, of a wide range.

    Reference:
        Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021,
        https://arxiv.org/abs/2103.10158
    """

    probability: Share = 1.0
    """Of any change."""

    shorthand: ClassVar[str] = "probability"
    reach: ClassVar[Reach] = TRIVIAL

    def steps(self, draws: Draws) -> Sequence[Step]:
        """The one."""
        level = draws.whole(2, BINS).double() / (BINS - 1)
        return [(draws.whole(1, len(OPERATIONS)), level, draws(3) < 0.5)]
