"""What is taken from an image, so that a generator can learn to give it back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

__all__ = ["edges", "grey", "low_resolution"]


def grey(images: Tensor) -> Tensor:
    """Brightness in every channel (Rec. 601), ``(N, 3, H, W)``, 0..1; images of one channel as they are.

    >>> grey(torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)).flatten().tolist()[0]
    0.29899999499320984
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(dim=1)
    return (0.299 * red + 0.587 * green + 0.114 * blue)[:, None].repeat(1, 3, 1, 1)


def low_resolution(images: Tensor, factor: int) -> Tensor:
    """Means of squares of ``factor`` pixels, drawn as large as before (bilinear), ``(N, C, H, W)``.

    >>> low_resolution(torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]), 2).unique().tolist()
    [0.5]
    """
    small = avg_pool2d(images, factor, ceil_mode=True, count_include_pad=False)
    return interpolate(small, size=images.shape[2:], mode="bilinear", align_corners=False)


def edges(images: Tensor) -> Tensor:
    """How steep the brightness is, in every channel, ``(N, C, H, W)``, 0..1.

    >>> edges(torch.ones(1, 3, 4, 4)).max().item()
    0.0
    """
    bright = grey(images)[:, :1]
    across = torch.nn.functional.pad(bright, (0, 1, 0, 0), mode="replicate").diff(dim=3)
    down = torch.nn.functional.pad(bright, (0, 0, 0, 1), mode="replicate").diff(dim=2)
    steep = (across.square() + down.square()).sqrt().clamp(max=1.0)
    return steep.repeat(1, images.shape[1], 1, 1)
