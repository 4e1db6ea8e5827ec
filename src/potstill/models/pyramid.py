"""A feature pyramid over any backbone of torchvision or timm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from potstill.errors import UserError, nearest
from potstill.models.trunk import trunk_of
from potstill.models.weights import load_weights

__all__ = ["Pyramid"]


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
        >>> import torch
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

        if channels < 1:
            raise UserError("arguments.channels", f"must be at least 1, got {channels}")
        whole = _backbone(backbone, dict(arguments or {}))
        if weights is not None:
            load_weights(whole, _file(weights, folders), "arguments.weights")
        self.stages, found = trunk_of(whole, (arguments or {}).get("img_size"), backbone)
        absent = [stride for stride in strides if stride not in found]
        if absent:
            raise UserError("arguments.strides", f"{backbone} has {sorted(found)}, got {list(strides)}")
        if sorted(strides) != list(strides):
            raise UserError("arguments.strides", f"expected the finest first, got {list(strides)}")
        self.stages.keep([found[stride][0] for stride in strides])
        self.fpn = FeaturePyramidNetwork([found[stride][1] for stride in strides], channels)
        self.out_channels = channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Levels by name, from the finest, ``(N, channels, H / stride, W / stride)``."""
        maps = self.stages(images)
        named = OrderedDict((str(place), each) for place, each in enumerate(maps))
        levels: OrderedDict[str, Tensor] = self.fpn(named)
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
    except (TypeError, RuntimeError, ValueError, AssertionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("arguments.backbone", f"cannot make {name!r}: {error}") from error
    return made


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
