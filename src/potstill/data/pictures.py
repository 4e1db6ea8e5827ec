"""Images to make images of: alone, in pairs of two folders, or with a degradation to undo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.data.arrays import load_array_images
from potstill.data.dataset import Rows, SampleSet
from potstill.data.load import Splits
from potstill.data.picture_files import (
    PictureFiles,
    check_names,
    check_pair_sizes,
    files_by_part,
    sizes_of,
)
from potstill.errors import UserError
from potstill.losses import Range
from potstill.specs import find

__all__ = ["PictureConfig", "PictureSet", "load_pictures"]

COUNT = Range(least=1)

Reader = Callable[[Sequence[int]], Tensor]
"""Gives images at positions, ``(n, C, H, W)`` uint8."""


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """What generators learn from and are measured on."""

    kind: Literal["folder", "arrays"] = "folder"
    """Image files, in ``train``, ``val`` and ``test`` or all together; or arrays, without their labels."""
    path: str
    """Folder or file of the inputs; with ``degrade`` of the true images."""
    targets: str | None = None
    """Folder of the true images, of the same names as the inputs."""
    real: str | None = None
    """Folder of images that a discriminator takes for real, without a counterpart among the inputs."""
    degrade: Literal["grey", "low_resolution", "edges"] | None = None
    """What is done to an image to make the input; the image itself is then the truth."""
    factor: Annotated[int, Range(least=2)] = 4
    """How much coarser ``low_resolution`` is."""
    latent: Annotated[int, COUNT] | None = None
    """Make images of so many normal numbers; those of ``path`` are what a discriminator takes for real."""
    size: Annotated[int, COUNT] | None = None
    """Side of the middle square that validation and test look at; by default the largest that all have."""
    crop: Annotated[int, COUNT] | None = None
    """Side of the squares that training cuts at random places; by default ``size``."""
    crops: Annotated[int, COUNT] = 1
    """Squares of each image in an epoch."""
    validation: Annotated[float, Range(above=0)] = 0.1
    """What to cut from the training part where no other part is given: a share, or a number."""
    limit: Annotated[int, Range(least=2)] | None = None
    """Train on this many images only; both arms see the same."""
    split_seed: Annotated[int, Range(least=0)] = 0
    """Seed of every cut."""
    workers: Annotated[int, Range(least=0)] = 0
    """Processes that decode images."""

    def __post_init__(self) -> None:
        for key in ("targets", "degrade", "real", "crop"):
            if self.latent is not None and getattr(self, key) is not None:
                raise UserError(f"data.{key}", "has no meaning beside data.latent, which has no inputs")
        if self.factor != type(self).factor and self.degrade != "low_resolution":
            raise UserError("data.factor", "is for data.degrade: low_resolution; leave it out")
        if self.real is not None and self.has_truth:
            raise UserError("data.real", "has no meaning beside true images, which are the real ones")
        for key in ("targets", "real"):
            if self.kind == "arrays" and getattr(self, key) is not None:
                raise UserError(f"data.{key}", "is for kind: folder; arrays have no second folder")

    @property
    def has_truth(self) -> bool:
        """Whether each input has a true image."""
        return self.targets is not None or self.degrade is not None


class PictureSet(SampleSet):
    """Images, each with the image that is to be made of it where that is known.

    Args:
        inputs: Reads inputs.
        targets: Reads the true images; ``None`` where there are none beside the inputs.
        positions: Which of them belong to this part.
        crops: How often each counts as a sample.
        in_memory: Whether nothing is decoded.
        real: Reads real images instead, and how many there are; the part is as long as the longer of both,
            and the shorter begins anew.
    """

    def __init__(
        self,
        inputs: Reader,
        targets: Reader | None,
        positions: Sequence[int],
        *,
        crops: int = 1,
        in_memory: bool = False,
        real: tuple[Reader, int] | None = None,
    ) -> None:
        self._inputs, self._targets, self.crops, self._real = inputs, targets, crops, real
        self.positions = list(positions)
        self._in_memory = in_memory

    def __len__(self) -> int:
        others = 0 if self._real is None else self._real[1]
        return max(len(self.positions), others) * self.crops

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Inputs ``(n, C, H, W)`` uint8, true or real images or ``None``, and the samples' positions."""
        rows = [self.positions[index % len(self.positions)] for index in indices]
        targets = None if self._targets is None else self._targets(rows)
        if self._real is not None:
            read, count = self._real
            targets = read([index % count for index in indices])
        return self._inputs(rows), targets, torch.as_tensor(indices, dtype=torch.int64)

    @property
    def in_memory(self) -> bool:
        """Whether nothing is decoded."""
        return self._in_memory

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input, ``(C, H, W)``."""
        channels, height, width = self._inputs(self.positions[:1]).shape[1:]
        return int(channels), int(height), int(width)

    def chosen(
        self, places: Sequence[int], crops: int = 1, real: tuple[Reader, int] | None = None
    ) -> PictureSet:
        """The images at some places of this part, beside ``real`` ones."""
        positions = [self.positions[place] for place in places]
        inside = self._in_memory
        return PictureSet(self._inputs, self._targets, positions, crops=crops, in_memory=inside, real=real)


def load_pictures(config: PictureConfig, *, search: Sequence[Path]) -> Splits[PictureSet]:
    """Load the parts that a recipe names and cut those that are missing.

    Raises:
        UserError: At the dotted key of what is missing or does not fit.
    """
    if config.targets is not None and config.degrade is not None:
        raise UserError("data.degrade", "has no meaning beside data.targets, which has inputs of its own")
    path = find(config.path, search, "data.path")
    if config.kind == "arrays":
        parts = {
            name: PictureSet(images, None, range(len(images)), in_memory=True)
            for name, images in load_array_images(path).items()
        }
        return _complete(parts, config, [], None)
    notes: list[str] = []
    inputs = files_by_part(path, "data.path")
    targets, real = (
        None if given is None else files_by_part(find(given, search, where), where)
        for where, given in (("data.targets", config.targets), ("data.real", config.real))
    )
    shortest = _shortest_side(inputs, targets, real, notes)
    sides = {name: shortest if name == "train" else min(config.size or shortest, shortest) for name in inputs}
    for key in ("size", "crop"):
        side = getattr(config, key)
        if side is not None and side > shortest:
            raise UserError(
                f"data.{key}", f"must be at most {shortest}, the shortest side of all images, got {side}"
            )
    parts = {
        name: PictureSet(
            PictureFiles(paths, sides[name], "data.path"),
            None if targets is None else PictureFiles(targets[name], sides[name], "data.targets"),
            range(len(paths)),
        )
        for name, paths in inputs.items()
    }
    judged = None if real is None else real["train"]
    others = None if judged is None else (PictureFiles(judged, shortest, "data.real"), len(judged))
    return _complete(parts, config, notes, others)


def _shortest_side(
    inputs: Mapping[str, list[Path]],
    targets: Mapping[str, list[Path]] | None,
    real: Mapping[str, list[Path]] | None,
    notes: list[str],
) -> int:
    """Of all images that are looked at, once pairs are found to fit each other."""
    if targets is not None:
        check_names(inputs, targets)
    seen = {
        "data.path": inputs,
        "data.targets": targets or {},
        "data.real": {"train": (real or {}).get("train", [])},
    }
    files = [(where, path) for where, parts in seen.items() for each in parts.values() for path in each]
    sizes = sizes_of(files, notes)
    if targets is not None:
        check_pair_sizes(inputs, targets, sizes)
    return min(min(size) for size in sizes.values())


def _complete(
    parts: dict[str, PictureSet],
    config: PictureConfig,
    notes: list[str],
    real: tuple[Reader, int] | None,
) -> Splits[PictureSet]:
    """Cut missing parts off the training part, limit what remains of it, and put real images beside it."""
    rng = np.random.default_rng(config.split_seed)
    for name in ("test", "validation"):
        if name in parts:
            continue
        train = parts["train"]
        share = config.validation
        count = round(share * len(train)) if share < 1 else int(share)
        if not 2 <= count <= len(train) - 2:
            raise UserError("data.validation", f"cannot cut {count} of {len(train)} images: both need two")
        order = rng.permutation(len(train)).tolist()
        parts[name], parts["train"] = train.chosen(sorted(order[:count])), train.chosen(sorted(order[count:]))
        notes.append(f"the data has no {name} part: {count} images were cut from the training part for it")
    for name in ("test", "validation"):
        if len(parts[name]) < 2:
            raise UserError("data.path", f"expected at least two images in the {name} part, got one")
    train = parts["train"]
    kept = len(train) if config.limit is None else min(config.limit, len(train))
    if kept < len(train):
        notes.append(f"only {kept} of {len(train)} training images are used (data.limit)")
    chosen = np.sort(rng.permutation(len(train))[:kept]).tolist() if kept < len(train) else range(kept)
    learnt = train.chosen(chosen, config.crops, real)
    return Splits(learnt, parts["validation"], parts["test"], notes)
