"""Random numbers of a sample that depend on nothing but (seed, view, index), and what a transform is.

The randomness of a sample is a hash, so its view is the same for any batch size, order, number of workers
or ranks, and after a resume.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from potstill.losses import Range

__all__ = ["Draws", "Mode", "Share", "Transform", "across", "uniform"]

# Constants of splitmix64 (Steele, Lea, Flood 2014), as signed 64-bit integers.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
SECOND = 0x94D049BB133111EB - (1 << 64)

Share = Annotated[float, Range(least=0, most=1)]
Mode = Literal["nearest", "bilinear"]


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


@dataclass(frozen=True)
class Draws:
    """The random numbers of one transform for the samples of a batch.

    Attributes:
        index: Positions in the data set, ``(N,)`` int64.
        seed: Seed of the run.
        view: Number of the view.
        first: Number of the transform's first draw; no two transforms share one.
    """

    index: Tensor
    seed: int
    view: int
    first: int

    def __call__(self, number: int) -> Tensor:
        """Draw ``number`` of each sample, ``(N,)`` float64 in [0, 1)."""
        return uniform(self.index, seed=self.seed, view=self.view, draw=self.first + number)

    def between(self, number: int, low: float | Tensor, high: float | Tensor) -> Tensor:
        """The same in ``[low, high)``, which may differ between samples."""
        return low + self(number) * (high - low)

    def whole(self, number: int, count: int | Tensor) -> Tensor:
        """The same as an integer from 0 to ``count - 1``, ``(N,)`` int64."""
        return (self(number) * count).long()

    def rows(self, chosen: Tensor) -> Draws:
        """The draws of some samples, ``(n,)`` positions in the batch."""
        return Draws(self.index[chosen], self.seed, self.view, self.first)


class Transform(ABC):
    """A change of single images with a probability; its fields are a recipe's keys.

    Attributes:
        probability: Of the change, sample by sample.
        shorthand: The field that a plain number in a recipe stands for.
    """

    probability: float
    shorthand: ClassVar[str]

    def check(self, images: Tensor) -> None:
        """Refuse images ``(N, C, H, W)`` that this cannot change.

        Raises:
            ValueError: With what was expected and got.
        """
        del images

    def found(self, search: Sequence[Path]) -> Transform:
        """What does the work: itself, or the user's function that it names."""
        del search
        return self

    @abstractmethod
    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Changed images ``(N, C, H, W)`` of the same type; draw 0 is taken by the probability."""

    def moves(self, height: int, width: int, draws: Draws) -> Sequence[Tensor]:
        """Where pixels move: affine maps one after the other, as :func:`~.geometry.warped` takes them.

        Each is ``(N, 2, 3)`` float64: from where a pixel of the new image is read. None where pixels stay.
        """
        del height, width, draws
        return ()

    def follow(self, pixels: Tensor, draws: Draws, mode: Mode) -> Tensor:
        """Other pixels of the same places, ``(N, c, H, W)``, moved as the images were.

        Args:
            pixels: A paired image, or masks.
            draws: The images' own.
            mode: How to read between pixels.
        """
        del draws, mode
        return pixels


def across(values: Tensor, images: Tensor) -> Tensor:
    """One value a sample ``(N,)`` as ``(N, 1, 1, 1)`` on the images' device."""
    return values.to(images.device)[:, None, None, None]
