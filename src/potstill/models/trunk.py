"""A backbone as the maps of its stages: one module after the other, or as timm's network tells them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import UserError

__all__ = ["Told", "Walk", "trunk_of"]

PROBE = (128, 192)
"""Height and width of the image with which strides are found."""
Found = dict[int, tuple[int, int]]
"""For each stride the last stage that has it, and its channels."""


class Walk(nn.ModuleList):
    """Stages of which each takes what the one before gives.

    Attributes:
        kept: Stages whose maps are given.
        channels_last: Whether they give maps ``(N, H, W, C)``.
    """

    kept: tuple[int, ...] = ()
    channels_last = False

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps ``(N, C, H, W)`` of the stages that are kept, in order."""
        return [each for place, each in self.maps(images) if place in self.kept]

    def maps(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What every stage gives."""
        for place, stage in enumerate(self):
            images = stage(images)
            yield place, images.permute(0, 3, 1, 2) if self.channels_last else images

    def keep(self, places: Sequence[int]) -> None:
        """Give the maps of these stages, and be no longer than they need."""
        self.kept = tuple(sorted(places))
        del self[self.kept[-1] + 1 :]


class Told(nn.Module):
    """A network of timm that tells what is between.

    Args:
        network: One with ``forward_intermediates``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network
        self.kept: list[int] | None = None

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps ``(N, C, H, W)`` of the stages that are kept, in order."""
        maps: list[Tensor] = self.network.forward_intermediates(
            images, indices=self.kept, intermediates_only=True
        )
        return maps

    def maps(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """What every stage gives."""
        yield from enumerate(self(images))

    def keep(self, places: Sequence[int]) -> None:
        """Give the maps of these stages, and have no end that is never used."""
        self.kept = sorted(places)
        self.network.prune_intermediate_layers(self.kept, prune_norm=True, prune_head=True)


@torch.no_grad()
def trunk_of(whole: nn.Module, size: Any, name: str) -> tuple[Walk | Told, Found]:
    """A network without its classifier, and the strides of its maps.

    Args:
        whole: A classifier.
        size: Of the images that it takes: a side, height and width, or ``None`` for any.
        name: What messages call it.

    Raises:
        UserError: If nothing in it gives maps of such images.
    """
    height, width = PROBE if size is None else (size, size) if isinstance(size, int) else size
    images, told = torch.zeros(1, 3, height, width), hasattr(whole, "forward_intermediates")
    trunk = Told(whole) if told else Walk(_stages(whole))
    modes = [(module, module.training) for module in trunk.modules()]
    trunk.eval()
    found: Found = {}
    why = "it gives none"
    try:
        for place, maps in trunk.maps(images):
            if not isinstance(maps, Tensor) or maps.dim() != 4:
                break
            _, *sides = maps.shape
            if not told and height != width and sides[0] * width == sides[1] * height != sides[2] * height:
                trunk.channels_last = True
                maps = maps.permute(0, 3, 1, 2)
            if maps.shape[2] < 2:
                break
            found[height // maps.shape[2]] = (place, int(maps.shape[1]))
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        why = str(error)  # a classifier's end, which takes vectors; or it does not take such images at all
    for module, training in modes:
        module.training = training
    if not found:
        raise UserError("arguments.backbone", f"{name} gives no maps of images {height} x {width}: {why}")
    return trunk, found


def _stages(whole: nn.Module) -> list[nn.Module]:
    """The network's children in order, those of its trunk one by one."""
    if isinstance(whole, nn.Sequential):
        return list(whole.children())
    for trunk in ("features", "layers"):
        inner = getattr(whole, trunk, None)
        if isinstance(inner, nn.Sequential):
            return list(inner.children())
    stages: list[nn.Module] = []
    for child in whole.children():
        stages += child.children() if isinstance(child, nn.Sequential | nn.ModuleList) else [child]
    return stages
