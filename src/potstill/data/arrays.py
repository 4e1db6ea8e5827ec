"""Arrays on disk: ``{train,validation,test}_{images,labels}.npy`` in a folder, or one ``.npz``."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.data.dataset import ImageSet, check_labels
from potstill.data.pixels import resized
from potstill.errors import UserError

__all__ = ["ArrayImages", "ArraySet", "load_array_images", "load_arrays"]

Array = NDArray[Any]
SPELLINGS = (("train", ("train",)), ("validation", ("validation", "val", "valid")), ("test", ("test",)))


class ArrayImages:
    """Images in one array, which may be mapped from a file bigger than memory.

    Args:
        images: ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` uint8 with 1 or 3 channels, or
            ``(N, C, H, W)`` floats.
        where: What messages call it.
        size: Side to resize and cut to; ``None`` leaves the images as they are.

    Raises:
        UserError: If shape or type do not fit.
    """

    def __init__(self, images: Array, where: str, size: int | None = None) -> None:
        floats = images.dtype.kind == "f" and images.ndim == 4
        grey, last = images.ndim == 3, images.ndim == 4 and images.shape[-1] in (1, 3)
        first = images.ndim == 4 and not last and images.shape[1] in (1, 3)
        if not floats and (images.dtype != np.uint8 or not (grey or last or first)):
            raise UserError(
                where,
                f"expected images (N, H, W), (N, H, W, 1|3) or (N, 1|3, H, W) uint8, or (N, C, H, W) float, "
                f"got {images.shape} {images.dtype}",
            )
        self._array, self._where, self._size = images, where, size
        self._channels_last = last and not floats

    def __len__(self) -> int:
        return len(self._array)

    def __call__(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices``, ``(n, C, H, W)``."""
        rows = self._array[np.asarray(indices, dtype=np.int64)]
        tensor = torch.from_numpy(
            np.ascontiguousarray(rows, dtype=np.float32 if rows.dtype.kind == "f" else None)
        )
        if tensor.dim() == 3:
            tensor = tensor.unsqueeze(1)
        elif self._channels_last:
            tensor = tensor.permute(0, 3, 1, 2)
        return resized(tensor, self._size)

    def check_scaled(self) -> None:
        """Refuse floats that are no images of one or three channels in 0..1; looks at all of them.

        Raises:
            UserError: With the lowest and the highest value.
        """
        if self._array.dtype.kind != "f" or not self._array.size:
            return
        low, high = float(self._array.min()), float(self._array.max())
        if self._array.shape[1] not in (1, 3) or not (low >= 0 and high <= 1):  # NaN is neither
            raise UserError(
                self._where,
                f"expected floats (N, 1|3, H, W) in 0..1, got {self._array.shape} in {low:g}..{high:g}",
            )


class ArraySet(ImageSet):
    """Images in one array, with labels.

    Args:
        images: As :class:`ArrayImages` takes them.
        labels: ``(N,)`` integers.
        class_names: Names in the order of the labels.
        where: What messages call it.
        size: Side to resize and cut to; ``None`` leaves the images as they are.

    Raises:
        UserError: If shapes, types or labels do not fit.
    """

    def __init__(
        self, images: Array, labels: Array, class_names: Sequence[str], where: str, size: int | None = None
    ) -> None:
        self._images = ArrayImages(images, where, size)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UserError(where, f"expected labels (N,) of integers, got {labels.shape} {labels.dtype}")
        if len(images) != len(labels):
            raise UserError(where, f"expected a label for every image, got {len(images)} and {len(labels)}")
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.class_names = tuple(class_names)
        check_labels(self.labels, self.class_names, where)

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices``, ``(n, C, H, W)``."""
        return self._images(indices)

    @property
    def in_memory(self) -> bool:
        """Arrays need no decoding."""
        return True


def load_array_images(path: Path) -> dict[str, ArrayImages]:
    """The images of :func:`load_arrays` without their labels, which need not be there, in 0..1 if floats.

    Raises:
        UserError: As there, and if floats are no images scaled to 0..1.
    """
    arrays = _folder(path) if path.is_dir() else _archive(path)
    found: dict[str, ArrayImages] = {}
    for part, spellings in SPELLINGS:
        for spelling in spellings:
            if (images := arrays.get(f"{spelling}_images")) is not None:
                found[part] = ArrayImages(images, f"data.path: {path}: {spelling}")
                found[part].check_scaled()
    if not found.get("train"):
        raise UserError("data.path", f"{path}: expected images in train_images.npy, got {sorted(arrays)}")
    return found


def load_arrays(path: Path, size: int | None = None) -> dict[str, ImageSet]:
    """The parts that stand in a folder of ``.npy`` files or in an ``.npz`` file.

    Args:
        path: The folder or the file. A ``classes.txt`` beside the arrays (or ``classes`` in the archive)
            names the classes; without one they are numbered.
        size: Side to resize and cut to.

    Returns:
        ``train`` and, where they are there, ``validation`` and ``test``.

    Raises:
        UserError: If a file is missing, truncated, or its content does not fit.
    """
    arrays = _folder(path) if path.is_dir() else _archive(path)
    names = _class_names(path, arrays)
    found: dict[str, ImageSet] = {}
    for part, spellings in SPELLINGS:
        for spelling in spellings:
            images, labels = (arrays.get(f"{spelling}_{kind}") for kind in ("images", "labels"))
            if images is None and labels is None:
                continue
            if images is None or labels is None:
                missing = "images" if images is None else "labels"
                raise UserError("data.path", f"{path}: {spelling}_{missing} is missing beside its other half")
            found[part] = ArraySet(images, labels, names, f"data.path: {path}: {spelling}", size)
    if "train" not in found:
        raise UserError(
            "data.path", f"{path}: expected train_images.npy and train_labels.npy, got {sorted(arrays)}"
        )
    return found


def _folder(path: Path) -> dict[str, Array]:
    return {file.stem: _read(file) for file in sorted(path.glob("*.npy"))}


def _read(file: Path) -> Array:
    try:
        array: Array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            "data.path", f"{file}: expected a whole .npy array, cannot read it: {error}"
        ) from error
    return array


def _archive(path: Path) -> dict[str, Array]:
    if path.suffix == ".npy":
        raise UserError("data.path", f"expected a folder of .npy files or an .npz file, got the array {path}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (
        ValueError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
    ) as error:
        raise UserError("data.path", f"{path}: expected a folder or a whole .npz file: {error}") from error


def _class_names(path: Path, arrays: Mapping[str, Array]) -> tuple[str, ...]:
    if path.is_dir() and (path / "classes.txt").is_file():
        lines = (path / "classes.txt").read_text(encoding="utf-8").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    if "classes" in arrays:
        return tuple(str(name) for name in arrays["classes"])
    labels = [array for name, array in arrays.items() if name.endswith("_labels") and array.size]
    highest = max((int(array.max()) for array in labels if array.dtype.kind in "iu"), default=-1)
    return tuple(str(number) for number in range(highest + 1))
