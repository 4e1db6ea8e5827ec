"""Image files: a folder with one subfolder a class, decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from potstill.data.dataset import ImageSet, check_labels
from potstill.data.pixels import is_grey, to_tensor
from potstill.errors import UserError

__all__ = ["FileSet", "load_folder"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
PARTS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}


class FileSet(ImageSet):
    """Image files with labels.

    Args:
        paths: The files.
        labels: A label each.
        class_names: Names in the order of the labels.
        size: Side to resize and cut to; without it all images must have one size.
        where: What messages call it.
        colour: Whether every image gets three channels; else all get one.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        class_names: Sequence[str],
        size: int | None,
        where: str,
        *,
        colour: bool,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.labels = torch.tensor(list(labels), dtype=torch.int64)
        self.class_names = tuple(class_names)
        self.side = size
        self.where = where
        self.colour = colour
        check_labels(self.labels, self.class_names, where)

    def images(self, indices: Sequence[int]) -> Tensor:
        """The decoded images at ``indices``, ``(n, C, H, W)`` uint8.

        Raises:
            UserError: At the path of an image that cannot be decoded, or that has another size than the rest.
        """
        decoded = [self._decode(self.paths[index]) for index in indices]
        first = decoded[0].shape
        for index, tensor in zip(indices, decoded, strict=True):
            if tensor.shape != first:
                raise UserError(
                    self.where,
                    f"images of mixed shapes: {self.paths[index]} is {tuple(tensor.shape)}, another "
                    f"{tuple(first)}; set data.size to resize them",
                )
        return torch.stack(decoded)

    def _decode(self, path: str) -> Tensor:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                return to_tensor(image, self.side, colour=self.colour)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise UserError(self.where, f"cannot decode the image {path}: {error}") from error


def load_folder(path: Path, size: int | None) -> dict[str, ImageSet]:
    """The parts of an image folder: ``train/CLASS/*.png``, or ``CLASS/*.png`` as one part ``train``.

    If any image has colour, grey ones get three equal channels. Hidden files and folders are passed over.

    Raises:
        UserError: If there is no image, a part lacks or adds a class, or sizes are mixed and ``size`` is
            ``None``.
    """
    if not path.is_dir():
        raise UserError("data.path", f"expected a folder with one subfolder a class, got the file {path}")
    folders: dict[str, Path] = {}
    for part, spellings in PARTS.items():
        for spelling in spellings:
            if (path / spelling).is_dir():
                folders.setdefault(part, path / spelling)
    spelled = {spelling for spellings in PARTS.values() for spelling in spellings}
    if set(_subfolders(path)) - spelled and not any(map(_subfolders, folders.values())):
        folders = {}  # a class may be called train, as the one on rails
    if folders and "train" not in folders:
        raise UserError("data.path", f"{path}: has {sorted(folders)}, but no folder train")
    folders = folders or {"train": path}
    names = tuple(_subfolders(folders["train"]))
    if not names:
        raise UserError("data.path", f"{folders['train']}: expected one subfolder a class, got none")
    files = {part: _labelled(folder, names) for part, folder in folders.items()}
    colour = _checked([file for part in files.values() for file, _ in part], size)
    return {
        part: FileSet(
            [file for file, _ in pairs],
            [label for _, label in pairs],
            names,
            size,
            f"data.path: {folders[part]}",
            colour=colour,
        )
        for part, pairs in files.items()
    }


def _subfolders(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.is_dir() and item.name[0] != ".")


def _labelled(folder: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Image files with the number of their class."""
    extra = sorted(set(_subfolders(folder)) - set(names))
    if extra:
        raise UserError(f"data.path: {folder}", f"has the class {extra[0]!r}, which the training part lacks")
    return [
        (file, label)
        for label, name in enumerate(names)
        for file in sorted((folder / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.name[0] != "."
    ]


def _checked(files: Sequence[Path], size: int | None) -> bool:
    """Whether any image has colour; headers are read (not pixels) as far as that and the sizes need it."""
    from PIL import Image, UnidentifiedImageError

    colour = False
    first: tuple[int, int] | None = None
    for file in files:
        try:
            with Image.open(file) as image:
                found, colour = image.size, colour or not is_grey(image)
        except (OSError, UnidentifiedImageError) as error:
            raise UserError("data.path", f"cannot decode the image {file}: {error}") from error
        if size is not None:
            if colour:
                break
            continue
        first = first or found
        if found != first:  # now, and not after an hour of training
            raise UserError(
                "data.path",
                f"images of mixed sizes: {file} is {found[0]}x{found[1]}, another {first[0]}x{first[1]}; "
                "set data.size to resize them",
            )
    return colour
