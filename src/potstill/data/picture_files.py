"""Image files of any size, one part of the data a folder: what is there, whether it fits, and reading it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from potstill.data.files import PARTS, SUFFIXES
from potstill.data.pixels import is_grey, middle, to_tensor
from potstill.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["PictureFiles", "check_names", "check_pair_sizes", "files_by_part", "sizes_of"]

NAMED = 10
"""Files that a message names."""

Parts = Mapping[str, Sequence[Path]]
Size = tuple[int, int]


class PictureFiles:
    """Reads the middle squares of image files; a class, so that worker processes can have it.

    Args:
        paths: The files.
        side: Of the squares.
        where: Dotted key for messages.
    """

    def __init__(self, paths: Sequence[Path], side: int, where: str) -> None:
        self.paths, self.side, self.where = list(paths), side, where

    def __call__(self, positions: Sequence[int]) -> Tensor:
        """Images at positions, ``(n, 3, side, side)`` uint8, each side as long as the image's at most."""
        return torch.stack([self._read(self.paths[position]) for position in positions])

    def _read(self, path: Path) -> Tensor:
        from PIL import Image as Pillow

        try:
            with Pillow.open(path) as image:
                return middle(to_tensor(image, None, colour=True)[None], self.side)[0]
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(self.where, f"cannot decode the image {path}: {error}") from error


def files_by_part(folder: Path, where: str) -> dict[str, list[Path]]:
    """Image files by part, sorted by name.

    Raises:
        UserError: If it is no folder, or a part has no images.
    """
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
    files = (file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    return sorted(files, key=lambda file: (file.stem, file.name))  # pairs may have other suffixes


def check_names(inputs: Parts, targets: Parts) -> None:
    """Refuse inputs without a true image, the other way round, and names that two files share.

    Raises:
        UserError: Naming the first ten.
    """
    if set(inputs) != set(targets):
        raise UserError(
            "data.targets", f"expected the parts {sorted(inputs)} of data.path, got {sorted(targets)}"
        )
    for part, files in inputs.items():
        names = [[path.stem for path in each] for each in (files, targets[part])]
        for where, each in zip(("data.path", "data.targets"), names, strict=True):
            if twice := sorted({name for name in each if each.count(name) > 1}):
                raise UserError(where, f"{part}: two files are called {_named(twice)}")
        ours, theirs = map(set, names)
        for alone, what in ((ours - theirs, "true image"), (theirs - ours, "input")):
            if alone:
                raise UserError("data.targets", f"{part}: no {what} for {_named(sorted(alone))}")


def check_pair_sizes(inputs: Parts, targets: Parts, sizes: Mapping[Path, Size]) -> None:
    """Refuse true images of another size than their inputs: squares cut of both would show other places.

    Raises:
        UserError: Naming the first ten.
    """
    for part, files in inputs.items():
        pairs = zip(files, targets[part], strict=True)
        apart = [(path, other) for path, other in pairs if sizes[path] != sizes[other]]
        if apart:
            (wide, high), (wanted, tall) = sizes[apart[0][1]], sizes[apart[0][0]]
            raise UserError(
                "data.targets",
                f"{part}: true images must be as large as their inputs; the first is {wide}x{high} and its "
                f"input {wanted}x{tall}, in all {_named([path.stem for path, _ in apart])}",
            )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def sizes_of(files: Sequence[tuple[str, Path]], notes: list[str]) -> dict[Path, Size]:
    """Width and height of each file; what is lost of them when they are read is noted.

    Args:
        files: Each with the dotted key that it belongs to.
        notes: Where notes are added.

    Raises:
        UserError: If one is no image.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    found: dict[Path, Size] = {}
    lost: Counter[str] = Counter()
    for where, file in files:
        try:
            with Pillow.open(file) as image:
                found[file] = image.size
                lost.update(_lost(image))
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(where, f"cannot decode the image {file}: {error}") from error
    notes.extend(f"{count} of {len(files)} images {what}" for what, count in sorted(lost.items()))
    return found


def _lost(image: Image) -> Iterator[str]:
    """What reading an image as three channels of eight bits leaves out or makes up."""
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        yield "have an alpha channel, which is left out"
    if image.mode.startswith("I"):
        yield "have 16 bits a pixel, of which the upper 8 are used"
    if is_grey(image):
        yield "are grey and get three equal channels"
