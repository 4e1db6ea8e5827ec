"""A feature pyramid over any backbone of torchvision or timm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from potstill.errors import UserError, nearest
from potstill.models.weights import load_weights

__all__ = ["Pyramid"]

PROBE = 128
"""Side of the image with which a backbone's strides are found."""


class Pyramid(nn.Module):
    """A feature pyramid over the stages of a backbone.

    Args:
        backbone: Name of a network of torchvision, or ``timm:name``.
        strides: Of the levels; the backbone must have a stage of each.
        channels: Of every level.
        weights: A file of weights for the backbone alone, ``None`` for random ones.
        arguments: Passed to what makes the backbone, such as ``width_mult``.
        folders: Where ``weights`` are looked up; a package's own files count too.

    Raises:
        UserError: If there is no such backbone, stride or file.

    Example:
        >>> levels = Pyramid("mobilenet_v2", (16, 32), 8, arguments={"width_mult": 0.1})
        >>> [tuple(level.shape[1:]) for level in levels(torch.zeros(1, 3, 64, 96)).values()]
        [(8, 4, 6), (8, 2, 3)]
    """

    def __init__(
        self,
        backbone: str,
        strides: Sequence[int],
        channels: int,
        *,
        weights: str | None = None,
        arguments: dict[str, Any] | None = None,
        folders: Sequence[Path] = (),
    ) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        whole = _backbone(backbone, dict(arguments or {}))
        if weights is not None:
            load_weights(whole, _file(weights, folders), "arguments.weights")
        self.stages = nn.ModuleList(whole.children()) if isinstance(whole, nn.Sequential) else _stages(whole)
        found = _by_stride(self.stages)
        absent = [stride for stride in strides if stride not in found]
        if absent:
            raise UserError("arguments.strides", f"{backbone} has {sorted(found)}, got {list(strides)}")
        self.kept = {found[stride][0]: str(place) for place, stride in enumerate(strides)}
        self.stages = self.stages[: max(self.kept) + 1]
        self.fpn = FeaturePyramidNetwork([found[stride][1] for stride in strides], channels)
        self.out_channels = channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Levels by name, from the finest, ``(N, channels, H / stride, W / stride)``."""
        found: OrderedDict[str, Tensor] = OrderedDict()
        for place, stage in enumerate(self.stages):
            images = stage(images)
            if place in self.kept:
                found[self.kept[place]] = images
        levels: OrderedDict[str, Tensor] = self.fpn(found)
        return levels


def _backbone(name: str, arguments: dict[str, Any]) -> nn.Module:
    library, colon, rest = name.partition(":")
    try:
        if colon and library == "timm":
            import timm

            made: nn.Module = timm.create_model(rest, **{"pretrained": False, **arguments})
            return made
        from torchvision import models

        if name not in models.list_models(module=models):
            raise UserError(
                "arguments.backbone",
                f"torchvision has no classifier {name!r}{nearest(name, models.list_models(module=models))}",
            )
        made = models.get_model(name, **arguments)
    except ImportError as error:
        raise UserError("arguments.backbone", "needs pip install 'potstill[vision]'") from error
    except (TypeError, RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("arguments.backbone", f"cannot make {name!r}: {error}") from error
    return made


def _stages(whole: nn.Module) -> nn.ModuleList:
    """The network's children in order, those of its trunk one by one."""
    for trunk in ("features", "layers"):
        inner = getattr(whole, trunk, None)
        if isinstance(inner, nn.Sequential):
            return nn.ModuleList(inner.children())
    stages: list[nn.Module] = []
    for child in whole.children():
        parts = list(child.children()) if isinstance(child, nn.Sequential) else [child]
        stages += parts
    return nn.ModuleList(stages)


@torch.no_grad()
def _by_stride(stages: nn.ModuleList) -> dict[int, tuple[int, int]]:
    """For each stride the last stage that has it, and its channels."""
    found: dict[int, tuple[int, int]] = {}
    images = torch.zeros(1, 3, PROBE, PROBE)
    modes = [(module, module.training) for module in stages.modules()]
    stages.eval()
    for place, stage in enumerate(stages):
        try:
            images = stage(images)
        except (RuntimeError, TypeError, ValueError):
            break  # a classifier's end, which takes vectors
        if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[2] < 2:
            break
        found[PROBE // images.shape[2]] = (place, int(images.shape[1]))
    for module, training in modes:
        module.training = training
    return found


def _file(name: str, folders: Sequence[Path]) -> Path:
    """A file in the folders, or of an installed package (``package/weights/file.pth``)."""
    for folder in (*folders, Path()):
        if (folder / name).is_file():
            return folder / name
    package, _, rest = name.partition("/")
    found = find_spec(package) if package.isidentifier() else None
    for folder in map(Path, (found.submodule_search_locations or []) if found else []):
        if (folder / rest).is_file():
            return folder / rest
    raise UserError(
        "arguments.weights", f"no file {name!r} in the data's folders or in a package {package!r}"
    )
