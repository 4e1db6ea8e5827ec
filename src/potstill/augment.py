"""Flips and padded crops of a whole batch at once; each sample's view depends on nothing but itself.

The randomness of a sample is a hash of (seed, view, index), so its view is the same for any batch size,
order, number of workers or ranks, and after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from potstill.errors import UserError
from potstill.losses import Range

__all__ = ["Augment", "AugmentConfig", "uniform"]

# Constants of splitmix64 (Steele, Lea, Flood 2014), as signed 64-bit integers.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND = 0x94D049BB133111EB - (1 << 64)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to each training image, in this order."""

    crop: Annotated[int, Range(least=0)] = 0
    """Pad with this many black pixels on every side, then cut the old size at a random place."""
    flip: Annotated[float, Range(least=0, most=1)] = 0.0
    """Probability of a mirror image, left for right."""


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Logical (not sign-extending) right shift."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _mixed(values: Tensor) -> Tensor:
    """The finaliser of splitmix64: neighbouring integers become unrelated ones."""
    values = (values ^ _shifted(values, 30)) * FIRST
    values = (values ^ _shifted(values, 27)) * SECOND
    return values ^ _shifted(values, 31)


def uniform(index: Tensor, *, seed: int, view: int, draw: int) -> Tensor:
    """One uniform number a sample, a pure function of the arguments.

    Args:
        index: Sample numbers ``(N,)`` int64.
        seed: Seed of the run.
        view: Number of the view (the epoch).
        draw: Which of a sample's draws; two draws of one view are independent.

    Returns:
        ``(N,)`` float64 in [0, 1).

    Example:
        >>> one = uniform(torch.arange(4), seed=0, view=3, draw=0)
        >>> bool((one[2:] == uniform(torch.tensor([2, 3]), seed=0, view=3, draw=0)).all())
        True
    """
    state = torch.full_like(index, seed)
    for part in (view, draw):
        state = _mixed(state * GOLDEN + part)
    state = _mixed(_mixed(state * GOLDEN + index) + GOLDEN)
    return _shifted(state, 11).double() / float(1 << 53)


class Augment:
    """The augmentation of one run; call it with a batch.

    Args:
        config: What to do.
        seed: Seed of the run.

    Example:
        >>> flip = Augment(AugmentConfig(flip=1.0), seed=0)
        >>> flip(torch.tensor([[[[1, 2]]]]), torch.tensor([0]), view=0).tolist()
        [[[[2, 1]]]]
    """

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.config = config
        self.seed = seed

    def __call__(self, images: Tensor, index: Tensor, view: int) -> Tensor:
        """A view of each image.

        Args:
            images: ``(N, C, H, W)`` of any type.
            index: Positions in the data set, ``(N,)`` int64.
            view: Number of the view.

        Returns:
            Images of the same shape and type.

        Raises:
            UserError: If the padding is not smaller than the image.
        """
        if self.config.crop:
            images = self._crop(images, index, view)
        if self.config.flip:
            mirrored = self._draw(index, view, 0) < self.config.flip
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images

    def _draw(self, index: Tensor, view: int, draw: int) -> Tensor:
        return uniform(index, seed=self.seed, view=view, draw=draw)

    def _crop(self, images: Tensor, index: Tensor, view: int) -> Tensor:
        padding = self.config.crop
        rows, columns = images.shape[2:]
        if padding >= min(rows, columns):
            raise UserError(
                "augment.crop", f"must be smaller than the image ({rows}x{columns}), got {padding}"
            )
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        places = 2 * padding + 1
        top = (self._draw(index, view, 1) * places).long()
        left = (self._draw(index, view, 2) * places).long()
        # All windows of the padded batch, without a copy; then one is picked per sample.
        windows = padded.unfold(2, rows, 1).unfold(3, columns, 1)  # (N, C, places, places, H, W)
        return windows[torch.arange(len(images), device=images.device), :, top, left]
