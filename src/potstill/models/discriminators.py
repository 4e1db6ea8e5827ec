"""Discriminators: networks that tell whether each patch of an image is real."""

from __future__ import annotations

import itertools

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as normed

__all__ = ["PatchDiscriminator"]


class PatchDiscriminator(nn.Module):
    """PatchGAN: convolutions that judge overlapping patches, one value each.

    Args:
        inputs: Channels that it sees: an image's, or those of input and image side by side.
        width: Channels of the first layer; doubled at each of the next, at most eight times as many.
        layers: How often the sides are halved; 3 for patches of 70 pixels.
        spectral_norm: Keep every layer's largest singular value at 1, in place of instance norms.

    Reference:
        Isola and others, "Image-to-Image Translation with Conditional Adversarial Networks", 2016,
        https://arxiv.org/abs/1611.07004; Miyato and others, "Spectral Normalization for Generative
        Adversarial Networks", 2018, https://arxiv.org/abs/1802.05957

    >>> import torch
    >>> PatchDiscriminator(width=4)(torch.rand(2, 3, 64, 64)).shape
    torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self, inputs: int = 3, width: int = 64, layers: int = 3, spectral_norm: bool = False
    ) -> None:
        super().__init__()
        if width < 1 or layers < 0:
            raise ValueError(f"expected a width from 1 and layers from 0, got {width} and {layers}")
        widths = [inputs, *(width * min(2**layer, 8) for layer in range(layers + 1))]
        made: list[nn.Module] = []
        for place, (before, after) in enumerate(itertools.pairwise(widths)):
            conv = nn.Conv2d(before, after, 4, stride=2 if place < layers else 1, padding=1)
            made.append(normed(conv) if spectral_norm else conv)
            if place and not spectral_norm:
                made.append(nn.InstanceNorm2d(after, affine=True))
            made.append(nn.LeakyReLU(0.2))
        last = nn.Conv2d(widths[-1], 1, 4, padding=1)
        self.layers = nn.Sequential(*made, normed(last) if spectral_norm else last)

    def forward(self, images: Tensor) -> Tensor:
        """How real each patch looks, ``(N, 1, h, w)``, of images ``(N, inputs, H, W)``, 0..1."""
        judged: Tensor = self.layers(2.0 * images - 1.0)
        return judged
