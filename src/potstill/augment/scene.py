"""What belongs to an image's pixels and moves with them: boxes, masks and a paired image."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

__all__ = ["Scene", "moved_boxes"]

SMALLEST = 1.0
"""Boxes whose width or height falls below so many pixels are dropped."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Images and all that must stay in register with them.

    Attributes:
        images: ``(N, C, H, W)`` of any type.
        boxes: ``(N, n, 4)`` float: left, top, right, bottom in pixels, 0 and ``W`` (``H``) at the borders.
        there: Which boxes there are, ``(N, n)`` boolean; the others only fill the rows.
        masks: ``(N, m, H, W)`` of any type: read at the nearest pixel, 0 where nothing was.
        paired: Other images of the same places, ``(N, c, H, W)``.
        visible: Share of each box that is still in its image, ``(N, n)`` float64; all of it at first.
    """

    images: Tensor
    boxes: Tensor | None = None
    there: Tensor | None = None
    masks: Tensor | None = None
    paired: Tensor | None = None
    visible: Tensor | None = None

    def __post_init__(self) -> None:
        rows, size = len(self.images), self.images.shape[2:]
        for name, pixels in (("masks", self.masks), ("paired", self.paired)):
            if pixels is not None and (len(pixels) != rows or pixels.shape[2:] != size):
                wanted = f"({rows}, channels, {size[0]}, {size[1]})"
                raise ValueError(f"{name}: expected {wanted}, got {tuple(pixels.shape)}")
        if (self.boxes is None) != (self.there is None):
            raise ValueError("expected boxes and there together")
        if self.boxes is not None and self.there is not None:
            if self.visible is None:
                object.__setattr__(self, "visible", torch.ones_like(self.there, dtype=torch.float64))
            wanted_boxes = (rows, self.there.shape[-1], 4)
            if tuple(self.boxes.shape) != wanted_boxes or tuple(self.there.shape) != wanted_boxes[:2]:
                got = f"{tuple(self.boxes.shape)} and {tuple(self.there.shape)}"
                raise ValueError(f"boxes: expected ({rows}, n, 4), and there ({rows}, n), got {got}")

    @property
    def alone(self) -> bool:
        """Whether there are only images."""
        return self.boxes is None and self.masks is None and self.paired is None

    def rows(self, chosen: Tensor) -> Scene:
        """Some of the scenes, ``(n,)`` positions on the images' device."""
        return replace(self, **{name: tensor[chosen] for name, tensor in self._tensors().items()})

    def with_rows(self, chosen: Tensor, other: Scene) -> Scene:
        """The same with ``other`` in some of its rows."""
        theirs = other._tensors()
        return replace(
            self, **{name: each.index_copy(0, chosen, theirs[name]) for name, each in self._tensors().items()}
        )

    def _tensors(self) -> dict[str, Tensor]:
        every = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    def dropped(self, least: float) -> Scene:
        """The same without boxes of which less than a share ``least`` is left, or hardly a pixel."""
        if self.boxes is None or self.there is None or self.visible is None:
            return self
        sides = self.boxes[..., 2:] - self.boxes[..., :2]
        enough = (self.visible >= least) & (sides >= SMALLEST).all(dim=-1)
        return replace(self, there=self.there & enough)


def moved_boxes(boxes: Tensor, matrix: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Boxes after their image was read anew under an affine map: bounds of their corners, clipped.

    Args:
        boxes: ``(N, n, 4)``.
        matrix: From where each pixel of the new image was read, in pixels from the middle, ``(N, 2, 3)``.
        height: Height of both images.
        width: Width of both images.

    Returns:
        Boxes of the same shape and type inside the image, and which share of the area of each unclipped one
        is left, ``(N, n)`` float64, 0 to 1.

    Example:
        >>> mirror = torch.tensor([[[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], dtype=torch.float64)
        >>> moved_boxes(torch.tensor([[[0.0, 1.0, 2.0, 3.0]]]), mirror, 4, 6)[0].tolist()
        [[[4.0, 1.0, 6.0, 3.0]]]
    """
    rows = matrix.to(boxes.device)[:, :, :, None, None]  # (N, 2, 3, 1, 1)
    left, top, right, bottom = boxes.double().unbind(-1)
    x = torch.stack([left, right, left, right], dim=-1) - width / 2 - rows[:, 0, 2]  # (N, n, 4 corners)
    y = torch.stack([top, top, bottom, bottom], dim=-1) - height / 2 - rows[:, 1, 2]
    # The inverse of the map, written out: a product of matrices would round by the size of the batch.
    a, b, c, d = rows[:, 0, 0], rows[:, 0, 1], rows[:, 1, 0], rows[:, 1, 1]
    area = a * d - b * c
    u, v = (d * x - b * y) / area + width / 2, (a * y - c * x) / area + height / 2
    whole = torch.stack([u.amin(-1), v.amin(-1), u.amax(-1), v.amax(-1)], dim=-1)
    sides = whole.new_tensor([width, height, width, height])
    inside = torch.minimum(whole.clamp_min(0), sides)
    left_of = _area(inside) / _area(whole).clamp_min(torch.finfo(torch.float64).tiny)
    return inside.to(boxes.dtype), left_of


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
