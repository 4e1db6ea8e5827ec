"""Image files: a folder with one subfolder a class, decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from potstill.data.dataset import ImageSet, check_labels
from potstill.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FileSet", "load_folder", "to_tensor"]

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}
PARTS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}


def to_tensor(image: Image, size: int | None) -> Tensor:
    """An image as ``(C, H, W)`` uint8: grey stays grey, anything else becomes RGB.

    Args:
        image: Any PIL image.
        size: Shorter side to resize to, followed by a square cut of the middle; ``None`` leaves it.
    """
    from PIL import Image as Pillow

    grey = image.mode in ("L", "1", "I", "I;16", "F")
    image = image.convert("L" if grey else "RGB")
    if size is not None:
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Pillow.Resampling.BILINEAR)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    pixels = np.array(image, dtype=np.uint8)
    tensor = torch.from_numpy(pixels)
    return tensor.unsqueeze(0) if tensor.dim() == 2 else tensor.permute(2, 0, 1)


class FileSet(ImageSet):
    """Image files with labels.

    Args:
        paths: The files.
        labels: A label each.
        class_names: Names in the order of the labels.
        size: Side to resize and cut to; without it all images must have one size.
        where: What messages call it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        class_names: Sequence[str],
        size: int | None,
        where: str,
    ) -> None:
        self.paths = [str(path) for path in paths]
        self.labels = torch.tensor(list(labels), dtype=torch.int64)
        self.class_names = tuple(class_names)
        self.side = size
        self.where = where
        check_labels(self.labels, self.class_names, where)

    def images(self, indices: Sequence[int]) -> Tensor:
        """The decoded images at ``indices``, ``(n, C, H, W)`` uint8.

        Raises:
            UserError: At the path of an image that cannot be decoded, or that has another size or other
                channels than the rest.
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
                return to_tensor(image, self.side)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
            raise UserError(self.where, f"cannot decode the image {path}: {error}") from error


def load_folder(path: Path, size: int | None) -> dict[str, ImageSet]:
    """The parts of an image folder: ``train/CLASS/*.png``, or ``CLASS/*.png`` as one part ``train``.

    Raises:
        UserError: If there is no image, or a part lacks or adds a class.
    """
    if not path.is_dir():
        raise UserError("data.path", f"expected a folder with one subfolder a class, got the file {path}")
    found: dict[str, Path] = {}
    for part, spellings in PARTS.items():
        for spelling in spellings:
            if (path / spelling).is_dir():
                found.setdefault(part, path / spelling)
    if "train" not in found:
        found = {"train": path}
    names = tuple(sorted(item.name for item in found["train"].iterdir() if item.is_dir()))
    if not names:
        raise UserError("data.path", f"{found['train']}: expected one subfolder a class, got none")
    return {part: _part(folder, names, size) for part, folder in found.items()}


def _part(folder: Path, names: tuple[str, ...], size: int | None) -> FileSet:
    where = f"data.path: {folder}"
    extra = sorted({item.name for item in folder.iterdir() if item.is_dir()} - set(names))
    if extra:
        raise UserError(where, f"has the class {extra[0]!r}, which the training part lacks")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        mine = sorted(item for item in (folder / name).rglob("*") if item.suffix.lower() in SUFFIXES)
        paths += mine
        labels += [label] * len(mine)
    result = FileSet(paths, labels, names, size, where)
    _check_sizes(result)
    return result


def _check_sizes(images: FileSet) -> None:
    """Read all headers once (no decoding): a wrong size must not stop a run after an hour."""
    from PIL import Image, UnidentifiedImageError

    if images.side is not None:
        return
    first: tuple[int, int] | None = None
    for path in images.paths:
        try:
            with Image.open(path) as image:
                size = image.size
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(images.where, f"cannot decode the image {path}: {error}") from error
        first = first or size
        if size != first:
            raise UserError(
                images.where,
                f"images of mixed sizes: {path} is {size[0]}x{size[1]}, another {first[0]}x{first[1]}; "
                "set data.size to resize them",
            )
