"""Data sets of the user's own: any map-style ``Dataset`` of ``(image, label)``, in memory or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from potstill.data.dataset import ImageSet, check_labels
from potstill.data.pixels import as_pixels, is_grey, resized, to_tensor
from potstill.errors import UserError

__all__ = ["OwnSet", "from_datasets", "parts_of"]

PROBES = 32


class OwnSet(ImageSet):
    """A map-style data set that gives ``(image, label)``.

    Images may be PIL images, or arrays or tensors ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)`` of uint8 or
    floats; the values of floats are taken as they are. Labels are read once, by going through the set unless
    it is a ``TensorDataset`` or keeps labels that agree with its samples (as torchvision's sets do).

    Args:
        dataset: The data set.
        class_names: Names in the order of the labels; its ``classes`` or numbers by default.
        size: Side to resize and cut to.
        where: What messages call it.
        colour: Give PIL images three channels (else one); by default three if any of 32 samples has colour.

    Raises:
        UserError: If it is iterable only, empty, or its samples are of another form.
    """

    def __init__(
        self,
        dataset: Any,
        class_names: Sequence[str] | None,
        size: int | None,
        where: str,
        *,
        colour: bool | None = None,
    ) -> None:
        _check_map_style(dataset, where)
        if len(dataset) == 0:
            raise UserError(where, "expected samples, got an empty data set")
        self.dataset = dataset
        self.side = size
        self.where = where
        self.labels = self._read_labels()
        names = class_names or getattr(dataset, "classes", None)
        self.class_names = tuple(str(name) for name in names or range(int(self.labels.max()) + 1))
        check_labels(self.labels, self.class_names, where)
        self.colour = self._any_colour() if colour is None else colour

    def _read_labels(self) -> Tensor:
        if isinstance(self.dataset, TensorDataset):
            labels: Any = self.dataset.tensors[1]
        else:
            labels = self._kept_labels()
            if labels is None:
                labels = [self._pair(position)[1] for position in range(len(self.dataset))]
        try:
            tensor = torch.as_tensor(np.asarray(labels))
        except (TypeError, ValueError) as error:
            raise UserError(self.where, f"expected an integer label for each sample: {error}") from error
        if tensor.dim() != 1 or tensor.is_floating_point() or len(tensor) != len(self.dataset):
            raise UserError(
                self.where,
                f"expected one integer label for each of {len(self.dataset)} samples, got "
                f"{tuple(tensor.shape)} {tensor.dtype}",
            )
        return tensor.to(torch.int64)

    def _probes(self) -> list[int]:
        count = len(self.dataset)
        positions: list[int] = np.unique(np.linspace(0, count - 1, min(count, PROBES)).astype(int)).tolist()
        return positions

    def _kept_labels(self) -> Any:
        """Labels that the set keeps beside its images, if they are those of its samples."""
        for name in ("targets", "labels", "_labels", "y"):
            kept = getattr(self.dataset, name, None)
            if isinstance(kept, list | tuple | np.ndarray | Tensor) and len(kept) == len(self.dataset):
                pairs = [(kept[position], self._pair(position)[1]) for position in self._probes()]
                if all(_same_label(one, other) for one, other in pairs):
                    return kept
        return None

    def _any_colour(self) -> bool:
        if isinstance(self.dataset, TensorDataset):
            return False
        images = (self._pair(position)[0] for position in self._probes())
        return any(hasattr(image, "convert") and not is_grey(image) for image in images)

    def _pair(self, position: int) -> tuple[Any, Any]:
        try:
            sample = self.dataset[position]
        except (OSError, SyntaxError) as error:  # PIL's for broken images; SyntaxError for broken PNG
            raise UserError(self.where, f"cannot read the sample {position}: {error}") from error
        if isinstance(sample, Mapping) and {"image", "label"} <= set(sample):
            return sample["image"], sample["label"]
        if not isinstance(sample, tuple | list) or len(sample) < 2:
            raise UserError(self.where, f"expected samples (image, label), got {type(sample).__name__}")
        return sample[0], sample[1]

    @property
    def in_memory(self) -> bool:
        """Whether its images lie in a tensor."""
        return isinstance(self.dataset, TensorDataset)

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices``, ``(n, C, H, W)``, uint8 or float32."""
        if isinstance(self.dataset, TensorDataset):
            try:
                rows = as_pixels(self.dataset.tensors[0][torch.as_tensor(indices)])
            except ValueError as error:
                raise UserError(self.where, str(error)) from error
            return resized(rows, self.side)
        images = [self._image(int(index)) for index in indices]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise UserError(
                self.where, f"images of mixed shapes {sorted(shapes)}; set data.size to resize them"
            )
        return torch.stack(images)

    def _image(self, position: int) -> Tensor:
        image = self._pair(position)[0]
        try:
            if hasattr(image, "convert"):
                return to_tensor(image, self.side, colour=self.colour)
            batch = image.unsqueeze(0) if isinstance(image, Tensor) else np.asarray(image)[None]
            return resized(as_pixels(batch), self.side)[0]
        except (ValueError, OSError, SyntaxError) as error:
            raise UserError(self.where, f"sample {position}: {error}") from error


def _check_map_style(dataset: Any, where: str) -> None:
    if isinstance(dataset, DataLoader):
        raise UserError(where, "expected a data set, got a DataLoader; give its .dataset")
    streamed = isinstance(dataset, IterableDataset)
    if streamed or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise UserError(
            where,
            f"expected a map-style data set (with __getitem__ and __len__), got {type(dataset).__name__}: "
            "a stream has no sample numbers, so its order could neither be shuffled nor resumed",
        )


def _same_label(one: Any, other: Any) -> bool:
    try:
        return bool(int(one) == int(other))
    except (TypeError, ValueError):
        return False


def parts_of(given: Any, where: str) -> dict[str, Any]:
    """The parts that a user's attribute names: one set, ``(train, test)`` or a mapping.

    Raises:
        UserError: If the parts are of another number or name.
    """
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - {"train", "validation", "test"})
        if unknown or "train" not in given:
            raise UserError(where, f"expected the parts train, validation and test, got {sorted(given)}")
        return dict(given)
    if isinstance(given, tuple | list):
        if len(given) not in (1, 2, 3):
            raise UserError(
                where, f"expected (train, test) or (train, validation, test), got {len(given)} parts"
            )
        names = {1: ("train",), 2: ("train", "test"), 3: ("train", "validation", "test")}[len(given)]
        return dict(zip(names, given, strict=True))
    return {"train": given}


def from_datasets(
    parts: Mapping[str, Any], class_names: Sequence[str] | None, size: int | None, where: str
) -> dict[str, ImageSet]:
    """Image sets from data sets by part; absent parts may be missing or ``None``.

    Args:
        parts: ``train`` and perhaps ``validation`` and ``test``.
        class_names: Names in the order of the labels; the training part's by default.
        size: Side to resize and cut to.
        where: Dotted key for messages.
    """
    train = OwnSet(parts["train"], class_names, size, f"{where}train")
    found: dict[str, ImageSet] = {"train": train}
    for part in ("validation", "test"):
        if parts.get(part) is not None:
            found[part] = OwnSet(parts[part], train.class_names, size, f"{where}{part}", colour=train.colour)
    return found
