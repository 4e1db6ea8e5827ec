"""How a network wants its images: mean, standard deviation and size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from potstill.errors import UserError
from potstill.models.load import ModelConfig

__all__ = ["IMAGENET", "Preprocessing", "preprocessing_of"]


@dataclass(frozen=True)
class Preprocessing:
    """Normalisation of images that are scaled to 0..1, after an optional resize.

    Attributes:
        mean: Mean of each channel.
        std: Standard deviation of each channel, above 0.
        size: Side to resize to, ``None`` for as they come.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"expected as many means as deviations, got {len(self.mean)} and {len(self.std)}"
            )
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"expected standard deviations above 0, got {self.std}")
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"expected finite means, got {self.mean}")

    def describe(self) -> str:
        """In words, for plans and reports.

        >>> Preprocessing((0.5,), (0.25,), 32).describe()
        'mean (0.5), std (0.25), resized to 32'
        """
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"mean ({mean}), std ({std})" + (f", resized to {self.size}" if self.size else "")

    def normalise(self, images: Tensor) -> Tensor:
        """What the network takes.

        Args:
            images: ``(N, C, H, W)``; integers 0 to 255 are scaled to 0..1, floats are taken as they are.

        Returns:
            ``(N, C, H, W)`` float32 (float64 stays).

        Raises:
            UserError: If the number of channels differs from that of the means.
        """
        if images.shape[1] != len(self.mean):
            raise UserError(
                "preprocessing",
                f"expected {len(self.mean)} channels for its means, got images {tuple(images.shape)}",
            )
        mean, std = (
            torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean, self.std)
        )
        if images.is_floating_point():
            images = images if images.dtype == torch.float64 else images.float()
            if self.size is not None:
                images = self._resized(images)
            return (images - mean.to(images.dtype)) / std.to(images.dtype)
        floats = images.float()
        if self.size is not None:
            floats = self._resized(floats)
        return floats.mul_(1 / (255 * std)).sub_(mean / std)  # (x / 255 - mean) / std in two passes

    def _resized(self, images: Tensor) -> Tensor:
        assert self.size is not None
        if tuple(images.shape[2:]) == (self.size, self.size):
            return images
        return interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def preprocessing_of(
    model: nn.Module,
    config: ModelConfig,
    channels: int,
    fallback: Preprocessing | None,
    *,
    where: str = "student",
) -> Preprocessing:
    """What a network wants: the recipe's word, its own, its library's, a fallback, or the usual.

    Args:
        model: The network; it may have an attribute ``preprocessing``, or timm's ``pretrained_cfg``.
        config: Its section of the recipe.
        channels: Channels of the data's images.
        fallback: What to take before the usual (ImageNet's for 3 channels, 0.5 and 0.5 otherwise).
        where: ``teacher`` or ``student``, for messages.

    Raises:
        UserError: If the mean or std that results is of another number of channels, or out of range.
    """
    own = _own(model, config, channels) or fallback or _usual(channels)
    mean, std = config.mean or own.mean, config.std or own.std
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise UserError(
                f"{where}.{name}", f"expected {channels} values for the data's images, got {len(values)}"
            )
    try:
        return Preprocessing(tuple(mean), tuple(std), config.size or own.size)
    except ValueError as error:
        key = "std" if all(math.isfinite(value) for value in mean) else "mean"
        raise UserError(f"{where}.{key}", str(error)) from error


def _own(model: nn.Module, config: ModelConfig, channels: int) -> Preprocessing | None:
    own = getattr(model, "preprocessing", None)
    if isinstance(own, Preprocessing):
        return own if len(own.mean) == channels else None
    known: Any = getattr(model, "pretrained_cfg", None)  # timm
    if isinstance(known, dict) and "mean" in known and len(known["mean"]) == channels:
        size = _side(known.get("input_size")) if config.pretrained else None
        return Preprocessing(tuple(known["mean"]), tuple(known["std"]), size)
    if config.model.startswith("torchvision:") and config.pretrained:
        return _torchvision(config.model.partition(":")[2])
    return None


def _side(shape: Sequence[int] | None) -> int | None:
    return int(shape[-1]) if shape else None


def _torchvision(name: str) -> Preprocessing:
    from torchvision.models import get_model_weights

    transform = get_model_weights(name).DEFAULT.transforms()
    return Preprocessing(tuple(transform.mean), tuple(transform.std), int(transform.crop_size[0]))


def _usual(channels: int) -> Preprocessing:
    return IMAGENET if channels == 3 else Preprocessing((0.5,) * channels, (0.5,) * channels)
