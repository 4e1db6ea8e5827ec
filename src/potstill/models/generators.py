"""Generators: networks that answer to an image, or to noise, with an image.

All take and give images ``(N, C, H, W)`` scaled to 0..1, whatever range they compute in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import UserError

__all__ = ["LatentGenerator", "StyleGenerator", "UNet"]

EPSILON = 1e-3
"""Of the instance norms, as the given weights were trained with."""


def check_sides(images: Tensor, step: int, what: str) -> None:
    """Refuse images whose sides are no multiples of ``step``.

    Raises:
        UserError: If they are not; the answer would be smaller or larger than the input.
    """
    height, width = images.shape[2:]
    if height % step or width % step:
        raise UserError(
            "data.size",
            f"{what} needs sides that are multiples of {step}, got {height}x{width}; "
            "in training data.crop is the side",
        )


class Convolution(nn.Sequential):
    """A convolution with an instance norm and, usually, a rectifier; "same" padding as TensorFlow's.

    Args:
        before: Channels of the input.
        after: Channels of the output.
        kernel: Side of the kernel, odd.
        stride: 1, or 2 to halve the sides.
        separable: A filter for each channel, then a product over channels, in place of full filters.
        active: Whether a rectifier follows.
    """

    def __init__(
        self,
        before: int,
        after: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        separable: bool = False,
        active: bool = True,
    ) -> None:
        around = kernel // 2
        # Of even sides TensorFlow pads one pixel less before than behind.
        pad = [nn.ZeroPad2d((around - 1, around, around - 1, around))] if stride == 2 else []
        options: dict[str, Any] = {"stride": stride, "padding": 0 if pad else around, "bias": False}
        if separable:
            layers = [
                nn.Conv2d(before, before, kernel, groups=before, **options),
                nn.Conv2d(before, after, 1, bias=False),
            ]
        else:
            layers = [nn.Conv2d(before, after, kernel, **options)]
        norm = nn.InstanceNorm2d(after, eps=EPSILON, affine=True)
        super().__init__(*pad, *layers, norm, *([nn.ReLU()] if active else []))


class Residual(nn.Module):
    """Two convolutions whose answer is added to their input."""

    def __init__(self, channels: int, *, separable: bool = False) -> None:
        super().__init__()
        self.first = Convolution(channels, channels, separable=separable)
        self.second = Convolution(channels, channels, separable=separable, active=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of the same shape, ``(N, C, H, W)``."""
        answer: Tensor = maps + self.second(self.first(maps))
        return answer


class Doubling(nn.Module):
    """A transposed convolution of stride 2, or, separable, nearest neighbours and a convolution."""

    def __init__(self, before: int, after: int, *, separable: bool = False) -> None:
        super().__init__()
        self.separable = separable
        if separable:
            self.conv: nn.Module = Convolution(before, after, separable=True)
            return
        self.conv = nn.ConvTranspose2d(before, after, 3, stride=2, bias=False)
        self.norm = nn.InstanceNorm2d(after, eps=EPSILON, affine=True)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps of twice the sides, ``(N, after, 2H, 2W)``."""
        if self.separable:
            answer: Tensor = self.conv(nn.functional.interpolate(maps, scale_factor=2.0, mode="nearest"))
            return answer
        grown = self.conv(maps)[:, :, :-1, :-1]  # "same": the row and column too many are the last
        return nn.functional.relu(self.norm(grown))


class StyleGenerator(nn.Module):
    """Johnson's generator for style transfer: down, residual blocks, up, all with instance norms.

    With its defaults it is the network of 1.68 million parameters whose weights tensorflow.js demos use
    (``conv.i``, ``scale.i``, ``shift.i``), and loads them as they are. Narrower or separable it is a student.

    Args:
        width: Channels after the first convolution; twice and four times as many follow.
        blocks: Residual blocks.
        separable: Separable convolutions everywhere but in the first and the last.
        kernel: Side of the first and the last kernel, odd.

    Reference:
        Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer and Super-Resolution", 2016,
        https://arxiv.org/abs/1603.08155

    >>> student = StyleGenerator(width=8, blocks=2, separable=True)
    >>> student(torch.rand(1, 3, 16, 24)).shape
    torch.Size([1, 3, 16, 24])
    """

    def __init__(self, width: int = 32, blocks: int = 5, separable: bool = False, kernel: int = 9) -> None:
        super().__init__()
        if width < 1 or blocks < 0 or kernel % 2 == 0:
            raise ValueError(
                f"expected width from 1, blocks from 0 and an odd kernel, got {width}, {blocks}, {kernel}"
            )
        middle, inner = 2 * width, 4 * width
        self.enter = Convolution(3, width, kernel)
        self.down1 = Convolution(width, middle, stride=2, separable=separable)
        self.down2 = Convolution(middle, inner, stride=2, separable=separable)
        self.blocks = nn.Sequential(*(Residual(inner, separable=separable) for _ in range(blocks)))
        self.up1 = Doubling(inner, middle, separable=separable)
        self.up2 = Doubling(middle, width, separable=separable)
        self.leave = Convolution(width, 3, kernel, active=False)

    def forward(self, images: Tensor) -> Tensor:
        """Restyled images.

        Args:
            images: ``(N, 3, H, W)``, 0..1, sides multiples of 4.

        Returns:
            ``(N, 3, H, W)``, 0..1: ``clamp(150 tanh + 127.5, 0, 255) / 255``.

        Raises:
            UserError: If a side is no multiple of 4.
        """
        check_sides(images, 4, "the style generator")
        maps: Tensor = self.down2(self.down1(self.enter(255.0 * images)))
        maps = self.leave(self.up2(self.up1(self.blocks(maps))))
        return (maps.tanh() * (150.0 / 255.0) + 0.5).clamp(0.0, 1.0)

    def own_names(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by the names of this network, where they come as ``conv.i``, ``scale.i``, ``shift.i``."""
        if "conv.0" not in state:
            return dict(state)
        named = list(self.named_modules())
        convs = [name for name, each in named if isinstance(each, nn.Conv2d | nn.ConvTranspose2d)]
        norms = [name for name, each in named if isinstance(each, nn.InstanceNorm2d)]
        found, given = {}, dict(state)
        for place, (conv, norm) in enumerate(zip(convs, norms, strict=False)):
            names = {"conv": f"{conv}.weight", "scale": f"{norm}.weight", "shift": f"{norm}.bias"}
            for theirs, own in names.items():
                if f"{theirs}.{place}" in given:
                    found[own] = given.pop(f"{theirs}.{place}")
        return {**found, **given}


class Level(nn.Module):
    """One level of a U-Net: halve, go deeper, double, and hand the input on beside the answer."""

    def __init__(self, outer: int, inner: int, deeper: nn.Module | None) -> None:
        super().__init__()
        down = [nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, stride=2, padding=1)]
        self.down = nn.Sequential(*down, *([nn.InstanceNorm2d(inner, affine=True)] if deeper else []))
        self.deeper = deeper if deeper is not None else nn.Identity()
        given = inner if deeper is None else 2 * inner
        self.up = nn.Sequential(
            nn.ReLU(),
            nn.ConvTranspose2d(given, outer, 4, stride=2, padding=1),
            nn.InstanceNorm2d(outer, affine=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Input and answer side by side, ``(N, 2 outer, H, W)``."""
        return torch.cat([maps, self.up(self.deeper(self.down(maps)))], dim=1)


class UNet(nn.Module):
    """pix2pix's U-Net: halved ``levels`` times, every level's maps handed across.

    The authors' batch norm is an instance norm here: answers do not depend on what else is in a batch.

    Args:
        width: Channels of the first level; doubled at each of the next, at most eight times as many.
        levels: How often the sides are halved, at least 2; 8 for 256 pixels in the paper.
        inputs: Channels of the input.
        outputs: Channels of the answer.

    Reference:
        Isola, Zhu, Zhou, Efros, "Image-to-Image Translation with Conditional Adversarial Networks", 2016,
        https://arxiv.org/abs/1611.07004

    >>> UNet(width=4, levels=3, inputs=1)(torch.rand(1, 1, 16, 16)).shape
    torch.Size([1, 3, 16, 16])
    """

    def __init__(self, width: int = 64, levels: int = 8, inputs: int = 3, outputs: int = 3) -> None:
        super().__init__()
        if levels < 2 or width < 1:
            raise ValueError(f"expected at least 2 levels and a width from 1, got {levels} and {width}")
        self.step = 2**levels
        widths = [width * min(2**level, 8) for level in range(levels)]
        inner: nn.Module | None = None
        for level in range(levels - 1, 0, -1):
            inner = Level(widths[level - 1], widths[level], inner)
        assert inner is not None
        self.enter = nn.Conv2d(inputs, width, 4, stride=2, padding=1)
        self.inner = inner
        self.leave = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * width, outputs, 4, stride=2, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, outputs, H, W)``, 0..1, of ``(N, inputs, H, W)``, 0..1.

        Raises:
            UserError: If a side is no multiple of ``2**levels``.
        """
        check_sides(images, self.step, "the U-Net")
        answer: Tensor = self.leave(self.inner(self.enter(2.0 * images - 1.0)))
        return 0.5 + 0.5 * answer.tanh()


class LatentGenerator(nn.Module):
    """DCGAN's generator for small images: vectors of noise become a few coarse maps, doubled twice.

    The authors' batch norm is a layer norm here: an image does not depend on what else is in a batch.
    The stages are called ``enter``, ``up1`` and ``up2``.

    Args:
        width: Channels of the largest maps; the others have twice and four times as many.
        inputs: Length of the noise.
        outputs: Channels of the images.
        side: Of the images, a multiple of 4.

    Reference:
        Radford, Metz, Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative
        Adversarial Networks", 2015, https://arxiv.org/abs/1511.06434

    >>> LatentGenerator(width=4, outputs=3, side=32)(torch.randn(2, 64)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(self, width: int = 32, inputs: int = 64, outputs: int = 1, side: int = 28) -> None:
        super().__init__()
        if width < 1 or side < 4 or side % 4:
            raise ValueError(f"expected a width from 1 and a side that 4 divides, got {width} and {side}")
        inner, middle, coarse = 4 * width, 2 * width, side // 4
        self.enter = nn.Sequential(
            nn.Linear(inputs, inner * coarse**2),
            nn.Unflatten(1, (inner, coarse, coarse)),
            nn.GroupNorm(1, inner),
            nn.ReLU(),
        )
        self.up1, self.up2 = self._doubled(inner, middle), self._doubled(middle, width)
        self.leave = nn.Conv2d(width, outputs, 3, padding=1)

    @staticmethod
    def _doubled(before: int, after: int) -> nn.Sequential:
        double = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
        return nn.Sequential(double, nn.GroupNorm(1, after), nn.ReLU())

    def forward(self, noise: Tensor) -> Tensor:
        """Images ``(N, outputs, side, side)``, 0..1, of noise ``(N, inputs)``."""
        maps: Tensor = self.leave(self.up2(self.up1(self.enter(noise))))
        return 0.5 + 0.5 * maps.tanh()
