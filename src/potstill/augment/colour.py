"""What pixels look like: brightness, contrast, saturation, hue, and the operations of the policies.

Torchvision's kernels take one factor for a whole batch; these take one for each image and give the same
pixels. Only what has no factor (``autocontrast``, ``equalize``) is torchvision's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from potstill.augment.draws import Draws, Share, Transform, across
from potstill.losses import Range

__all__ = [
    "Colour",
    "brightness",
    "check_bytes",
    "contrast",
    "hue",
    "posterize",
    "saturation",
    "sharpness",
    "solarize",
]

GREY = (0.2989, 0.587, 0.114)


def check_bytes(images: Tensor) -> None:
    """Refuse images whose range is not known."""
    if images.dtype != torch.uint8:
        raise ValueError(
            "needs images of integers 0 to 255; the data's are floats, whose range only their owner knows"
        )


def _grey(images: Tensor) -> Tensor:
    """Whole grey values, ``(N, 1, H, W)`` float32."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.float().unbind(1)
    return (red * GREY[0] + green * GREY[1] + blue * GREY[2]).floor_().unsqueeze(1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    own, rest = across(factor.float(), images), across((1.0 - factor).float(), images)
    return (images * own + other * rest).clamp_(0, 255).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Pixels ``(N, C, H, W)`` uint8 times ``factor`` ``(N,)``: 0 is black, 1 the image.

    >>> brightness(torch.tensor([[[[100, 200]]]], dtype=torch.uint8), torch.tensor([1.5])).tolist()
    [[[[150, 255]]]]
    """
    return (images * across(factor.float(), images)).clamp_(0, 255).to(torch.uint8)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Between the grey image at 0 and the image at 1, or beyond; grey images stay."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Between one even grey at 0 and the image at 1, or beyond."""
    total = _grey(images).double().sum(dim=(1, 2, 3), keepdim=True)  # of whole numbers, so exact
    return _blend(images, (total / images[0, 0].numel()).float(), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Between a smoothed image at 0 and the image at 1, or beyond; the border stays."""
    height, width = images.shape[2:]
    if min(height, width) <= 2:
        return images
    pixels = images.float()
    inner = pixels[:, :, 1:-1, 1:-1]
    window = [pixels[:, :, y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)]
    smooth = ((sum(window) + 4 * inner) / 13).round_()
    inner.add_((smooth - inner) * across((1.0 - factor).float(), images))
    return pixels.clamp_(0, 255).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Only the upper ``bits`` ``(N,)``, 1 to 8, of each value."""
    mask = (256 - 2.0 ** (8 - bits.double())).to(torch.uint8)
    return images & across(mask, images)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverted where a value reaches ``threshold`` ``(N,)``, 0 to 255."""
    return torch.where(images >= across(threshold.float(), images), 255 - images, images)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Colours moved round the circle by ``turn`` ``(N,)``, a share of it; grey images stay."""
    if images.shape[1] == 1:
        return images
    pixels = images.float() / 255
    least, most = torch.aminmax(pixels, dim=1)
    spread = most - least
    safe = torch.where(spread == 0, torch.ones_like(spread), spread)
    red, green, blue = ((most.unsqueeze(1) - pixels) / safe.unsqueeze(1)).unbind(1)
    is_red, is_green = most == pixels[:, 0], most == pixels[:, 1]
    angle = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    angle = (angle / 6 + across(turn.float(), images)[:, 0]).remainder_(1.0)
    # A channel is full within a third of the circle about its own angle and empty a half away from it.
    offset = pixels.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    place = (offset + 6 * angle.unsqueeze(1)).remainder_(6.0)
    level = torch.minimum(place, 4 - place).clamp_(0, 1)
    coloured = most.unsqueeze(1) - spread.unsqueeze(1) * level
    # As torchvision brings 0..1 to bytes: 256 equal parts.
    return (coloured * (256 - 1e-3)).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Colour(Transform):
    """Brightness, contrast, saturation and hue, each moved at random, in this order."""

    brightness: Annotated[float, Range(least=0)] = 0.0
    """Factor from ``1 - brightness`` (not below 0) to ``1 + brightness``."""
    contrast: Annotated[float, Range(least=0)] = 0.0
    """The same for the contrast."""
    saturation: Annotated[float, Range(least=0)] = 0.0
    """The same for the saturation."""
    hue: Annotated[float, Range(least=0, most=0.5)] = 0.0
    """Largest turn of the colours to either side, a share of the circle."""
    probability: Share = 1.0
    """Of any change."""

    shorthand: ClassVar[str] = "brightness"

    def check(self, images: Tensor) -> None:
        """Bytes only."""
        check_bytes(images)

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Each image with factors of its own."""
        for number, (change, span) in enumerate(
            ((brightness, self.brightness), (contrast, self.contrast), (saturation, self.saturation)), 1
        ):
            if span:
                images = change(images, draws.between(number, max(0.0, 1 - span), 1 + span))
        return hue(images, draws.between(4, -self.hue, self.hue)) if self.hue else images
