"""What both kinds of detectors need: images and boxes in torchvision's forms, and rows of one length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["IGNORED", "MOST", "UNLABELLED", "listed", "packed", "padded", "renamed", "shapes", "size_of"]

IGNORED = -1
"""Label of a row that counts in no loss; 0 is background, objects are counted from 1."""
UNLABELLED = -2
"""Label of a row that would count, in an image that nobody labelled."""
MOST = 100
"""Boxes of an image that are answered, as COCO counts them."""


def listed(images: Tensor) -> Any:
    """Images ``(N, 3, H, W)`` as torchvision's lists of images."""
    from torchvision.models.detection.image_list import ImageList

    return ImageList(images, [(images.shape[2], images.shape[3])] * len(images))


def shapes(levels: list[Tensor]) -> list[Tensor]:
    """Maps in name alone: anchors take their type, and in half precision would miss whole pixels."""
    return [torch.zeros((), device=each.device).expand(each.shape) for each in levels]


def size_of(images: Tensor) -> Tensor:
    """Width and height, ``(2,)``."""
    return torch.tensor([images.shape[3], images.shape[2]], dtype=torch.float32, device=images.device)


def padded(rows: list[Tensor], fill: int) -> Tensor:
    """Tensors of different lengths as one, ``(N, longest, ...)``."""
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=fill)


def packed(found: list[dict[str, Tensor]], images: Tensor) -> Tensor:
    """Boxes with score and class, the best first, ``(N, 100, 6)``."""
    rows = []
    for each in found:
        columns = [each["boxes"], each["scores"][:, None], each["labels"][:, None]]
        row = torch.cat([column.detach().float() for column in columns], dim=1)
        if not torch.onnx.is_in_onnx_export():  # ONNX has no stable sort; torchvision's boxes come sorted
            row = row[row[:, 4].argsort(descending=True, stable=True)]
        rows.append(torch.cat([row, row.new_zeros(MOST, 6)])[:MOST])
    return torch.stack(rows) if rows else images.new_zeros(0, MOST, 6)


def renamed(found: Tensor, order: list[int]) -> Tensor:
    """Boxes ``(N, n, 6)`` with the numbers of other classes, those of classes without one left out.

    Args:
        found: Boxes; class 0 fills rows.
        order: The old number of each new one, from 1.

    >>> boxes = torch.tensor([[[0.0, 0, 1, 1, 0.75, 3], [0, 0, 1, 1, 0.5, 2], [0, 0, 1, 1, 0.25, 1]]])
    >>> renamed(boxes, [3, 1])[0, :, 4:].tolist()
    [[0.75, 1.0], [0.25, 2.0], [0.0, 0.0]]
    """
    numbers = found.new_zeros(max([*order, int(found[..., 5].max()) if found.numel() else 0]) + 1)
    numbers[torch.tensor(order, device=found.device)] = torch.arange(1.0, len(order) + 1, device=found.device)
    labels = numbers[found[..., 5].long()]
    kept = torch.cat([found[..., :5], labels[..., None]], dim=-1) * (labels > 0)[..., None]
    first = (labels == 0).long().argsort(dim=1, stable=True)
    return kept.gather(1, first[..., None].expand_as(kept))
