"""Images to make images of: alone, in pairs of two folders, or with a degradation to undo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from potstill.data.arrays import load_arrays
from potstill.data.dataset import Rows, SampleSet
from potstill.data.files import PARTS, SUFFIXES
from potstill.data.load import Splits
from potstill.data.pixels import to_tensor
from potstill.errors import UserError
from potstill.losses import Range
from potstill.specs import find

__all__ = ["PictureConfig", "PictureSet", "load_pictures", "middle"]

COUNT = Range(least=1)
NAMED = 10

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
        for key in ("targets", "degrade", "real"):
            if self.latent is not None and getattr(self, key) is not None:
                raise UserError(f"data.{key}", "has no meaning beside data.latent, which has no inputs")
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


def middle(images: Tensor, side: int) -> Tensor:
    """The middle square of ``(N, C, H, W)`` images; sides that are no longer stay.

    >>> middle(torch.arange(25.0).reshape(1, 1, 5, 5), 1).item()
    12.0
    """
    top, left = (max((length - side) // 2, 0) for length in images.shape[2:])
    return images[:, :, top : top + side, left : left + side]


class _Files:
    """Reads the middle squares of image files; a class, so that worker processes can have it."""

    def __init__(self, paths: Sequence[Path], side: int, where: str) -> None:
        self.paths, self.side, self.where = list(paths), side, where

    def __call__(self, positions: Sequence[int]) -> Tensor:
        return torch.stack([self._read(self.paths[position]) for position in positions])

    def _read(self, path: Path) -> Tensor:
        from PIL import Image

        try:
            with Image.open(path) as image:
                return middle(to_tensor(image, None, colour=True)[None], self.side)[0]
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(self.where, f"cannot decode the image {path}: {error}") from error


def load_pictures(config: PictureConfig, *, search: Sequence[Path]) -> Splits[PictureSet]:
    """Load the parts that a recipe names and cut those that are missing.

    Raises:
        UserError: At the dotted key of what is missing or does not fit.
    """
    if config.targets is not None and config.degrade is not None:
        raise UserError("data.degrade", "has no meaning beside data.targets, which has inputs of its own")
    path = find(config.path, search, "data.path")
    if config.kind == "arrays":
        arrays = load_arrays(path)
        parts = {
            name: PictureSet(part.images, None, range(len(part)), in_memory=True)
            for name, part in arrays.items()
        }
        return _complete(parts, config, [], None)
    inputs = _files(path, "data.path")
    targets = (
        None
        if config.targets is None
        else _files(find(config.targets, search, "data.targets"), "data.targets")
    )
    if targets is not None:
        _check_pairs(inputs, targets)
    real = (
        None if config.real is None else _files(find(config.real, search, "data.real"), "data.real")["train"]
    )
    notes: list[str] = []
    both = [path for files in (inputs, targets or {}) for part in files.values() for path in part]
    both += real or []
    shortest = _shortest_side(both, notes)
    sides = {name: shortest if name == "train" else min(config.size or shortest, shortest) for name in inputs}
    for key in ("size", "crop"):
        side = getattr(config, key)
        if side is not None and side > shortest:
            raise UserError(
                f"data.{key}", f"must be at most {shortest}, the shortest side of all images, got {side}"
            )
    parts = {
        name: PictureSet(
            _Files(paths, sides[name], "data.path"),
            None if targets is None else _Files(targets[name], sides[name], "data.targets"),
            range(len(paths)),
        )
        for name, paths in inputs.items()
    }
    others = None if real is None else (_Files(real, shortest, "data.real"), len(real))
    return _complete(parts, config, notes, others)


def _files(folder: Path, where: str) -> dict[str, list[Path]]:
    """Image files by part, sorted by name."""
    if not folder.is_dir():
        raise UserError(where, f"expected a folder of images, got the file {folder}")
    found: dict[str, list[Path]] = {}
    for part, spellings in PARTS.items():
        for spelling in spellings:
            if (folder / spelling).is_dir():
                found.setdefault(part, _images(folder / spelling))
    found = found or {"train": _images(folder)}
    for part in ("train", *found):
        if not found.get(part):
            raise UserError(where, f"{folder}: found no images to {'train on' if part == 'train' else part}")
    return found


def _images(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != "."
    )


def _check_pairs(inputs: Mapping[str, list[Path]], targets: Mapping[str, list[Path]]) -> None:
    """Refuse inputs without a true image, and the other way round."""
    if set(inputs) != set(targets):
        raise UserError(
            "data.targets", f"expected the parts {sorted(inputs)} of data.path, got {sorted(targets)}"
        )
    for part, files in inputs.items():
        names = [{path.stem for path in each} for each in (files, targets[part])]
        for here, there, what in ((names[0], names[1], "true image"), (names[1], names[0], "input")):
            alone = sorted(here - there)
            if alone:
                more = f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
                raise UserError("data.targets", f"{part}: no {what} for {', '.join(alone[:NAMED])}{more}")
        for path, other in zip(files, targets[part], strict=True):
            if path.stem != other.stem:
                raise UserError("data.targets", f"{part}: two files are called {path.stem}")


def _shortest_side(files: Sequence[Path], notes: list[str]) -> int:
    """Of all images; what is lost of them is noted."""
    from PIL import Image, UnidentifiedImageError

    sides: list[int] = []
    modes: list[str] = []
    for file in files:
        try:
            with Image.open(file) as image:
                sides.append(min(image.size))
                modes.append(image.mode)
        except (OSError, UnidentifiedImageError) as error:
            raise UserError("data.path", f"cannot decode the image {file}: {error}") from error
    for found, what in (
        (("RGBA", "LA", "PA", "La", "RGBa"), "have an alpha channel, which is left out"),
        (("I;16", "I", "I;16B", "I;16L"), "have 16 bits a pixel, of which the upper 8 are used"),
        (("L", "LA", "1", "La", "I;16", "I"), "are grey and get three equal channels"),
    ):
        count = sum(mode in found for mode in modes)
        if count:
            notes.append(f"{count} of {len(files)} images {what}")
    return min(sides)


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
    train = parts["train"]
    kept = len(train) if config.limit is None else min(config.limit, len(train))
    if kept < len(train):
        notes.append(f"only {kept} of {len(train)} training images are used (data.limit)")
    chosen = np.sort(rng.permutation(len(train))[:kept]).tolist() if kept < len(train) else range(kept)
    learnt = train.chosen(chosen, config.crops, real)
    return Splits(learnt, parts["validation"], parts["test"], notes)
