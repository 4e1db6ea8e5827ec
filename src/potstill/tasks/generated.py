"""What tasks of generators share: squares of images, their augmentation, what a generator answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.augment import Augment, AugmentConfig
from potstill.augment.draws import Draws
from potstill.batch import Batch, Signals, ask
from potstill.errors import UserError
from potstill.matching.taps import first_tensor

__all__ = ["answer", "as_shares", "augment_of", "squares"]


def augment_of(config: AugmentConfig, seed: int, samples: int, search: Sequence[Path]) -> Augment:
    """The transform of training images of a seed.

    Raises:
        UserError: If it changes texts, or mixes images.
    """
    config.check_samples("images")
    if config.mixings():
        raise UserError("augment", "mixing has no meaning for generators of images")
    return Augment(config, seed, samples=samples, search=search)


def answer(model: nn.Module, batch: Batch, role: str) -> Tensor:
    """What a generator makes of a batch, ``(N, C, H, W)`` in 0..1."""
    found = ask(model, batch.input(role))
    image = found.output if isinstance(found, Signals) else first_tensor(found)
    assert image is not None, "a generator gives images"
    return image.float().clamp(0.0, 1.0)


def squares(images: Tensor, side: int, draws: Draws) -> Tensor:
    """A square of each image, its place a pure function of the draws: ``(N, C, H, W)`` to sides of ``side``.

    >>> draws = Draws(torch.arange(2), seed=0, view=0, first=0)
    >>> squares(torch.rand(2, 3, 8, 9), 4, draws).shape
    torch.Size([2, 3, 4, 4])
    """
    if tuple(images.shape[2:]) == (side, side):
        return images
    tops, lefts = (
        draws.whole(place, length - side + 1).tolist() for place, length in enumerate(images.shape[2:])
    )
    places = zip(images, tops, lefts, strict=True)
    return torch.stack([one[:, top : top + side, left : left + side] for one, top, left in places])


def as_shares(images: Tensor) -> Tensor:
    """Images of bytes as floats in 0..1; floats as they are."""
    return images if images.is_floating_point() else images.float() / 255.0
