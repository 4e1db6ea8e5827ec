"""From whatever holds an image to ``(C, H, W)`` tensors: PIL images, arrays, tensors; and resizing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["as_pixels", "is_grey", "middle", "resized", "to_tensor"]

GREY_MODES = ("1", "L", "LA", "La", "F")


def is_grey(image: Image) -> bool:
    """Whether a PIL image has one channel (16-bit modes and grey with transparency included)."""
    return image.mode in GREY_MODES or image.mode.startswith("I")


def to_tensor(image: Image, size: int | None, *, colour: bool | None = None) -> Tensor:
    """A PIL image as ``(C, H, W)`` uint8.

    Args:
        image: The image; 16-bit grey keeps its upper 8 bits.
        size: Shorter side to resize to, followed by a square cut of the middle; ``None`` leaves it.
        colour: Give three channels; ``None`` gives one to grey images and three to others.

    Raises:
        ValueError: If the pixels are floats, whose range nobody knows.

    Example:
        >>> from PIL import Image
        >>> to_tensor(Image.new("RGB", (12, 8)), 4).shape, to_tensor(Image.new("L", (3, 2)), None).shape
        (torch.Size([3, 4, 4]), torch.Size([1, 2, 3]))
    """
    from PIL import Image as Pillow

    if image.mode == "F":
        raise ValueError("expected 8 or 16 bits a channel, got floats")
    three = not is_grey(image) if colour is None else colour
    if image.mode.startswith("I"):
        image = Pillow.fromarray((np.clip(np.asarray(image), 0, 65535) // 256).astype(np.uint8))
    image = image.convert("RGB" if three else "L")
    if size is not None:
        height, width = _covering(image.height, image.width, size)
        image = image.resize((width, height), Pillow.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    tensor = torch.from_numpy(np.array(image, dtype=np.uint8))
    return tensor.permute(2, 0, 1) if three else tensor.unsqueeze(0)


def as_pixels(values: Any) -> Tensor:
    """A batch of images as ``(N, C, H, W)``: uint8 stays, any float becomes float32.

    Args:
        values: Tensor or array ``(N, H, W)``, ``(N, C, H, W)`` or ``(N, H, W, C)``; channels are taken to
            be last where the last axis has 1 or 3 entries and the second has not.

    Raises:
        ValueError: If it is nothing of that kind.

    Example:
        >>> as_pixels(np.zeros((5, 8, 9, 3), np.uint8)).shape
        torch.Size([5, 3, 8, 9])
    """
    array = None if isinstance(values, Tensor) else np.array(values)
    if array is not None and array.dtype.kind not in "biuf":
        raise ValueError(f"expected an image, got {type(values).__name__}")
    tensor = values if array is None else torch.from_numpy(array)
    if tensor.dim() not in (3, 4) or not (tensor.is_floating_point() or tensor.dtype == torch.uint8):
        raise ValueError(
            "expected images (H, W), (C, H, W) or (H, W, C) of uint8 (0 to 255) or floats, got "
            f"{tuple(tensor.shape[1:])} {tensor.dtype}".replace("torch.", "")
        )
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    if tensor.dim() == 3:
        return tensor.unsqueeze(1)
    last = tensor.shape[-1] in (1, 3) and tensor.shape[1] not in (1, 3)
    return tensor.permute(0, 3, 1, 2) if last else tensor


def resized(images: Tensor, size: int | None) -> Tensor:
    """The shorter side brought to ``size`` (bilinear, smoothed), then the middle square.

    Args:
        images: ``(N, C, H, W)`` uint8 or float32.
        size: The side; ``None`` leaves the images as they are.

    Example:
        >>> resized(torch.zeros(2, 3, 32, 48), 16).shape
        torch.Size([2, 3, 16, 16])
    """
    if size is None:
        return images
    height, width = _covering(images.shape[2], images.shape[3], size)
    if (height, width) != tuple(images.shape[2:]):
        images = torch.nn.functional.interpolate(
            images.contiguous(), size=(height, width), mode="bilinear", antialias=True
        )
    top, left = (height - size) // 2, (width - size) // 2
    return images[:, :, top : top + size, left : left + size]


def middle(images: Tensor, side: int) -> Tensor:
    """The middle square of ``(N, C, H, W)`` images; sides that are no longer stay.

    >>> middle(torch.arange(25.0).reshape(1, 1, 5, 5), 1).item()
    12.0
    """
    top, left = (max((length - side) // 2, 0) for length in images.shape[2:])
    return images[:, :, top : top + side, left : left + side]


def _covering(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of the same shape whose shorter side is ``size``."""
    scale = size / min(height, width)
    return max(size, round(height * scale)), max(size, round(width * scale))
