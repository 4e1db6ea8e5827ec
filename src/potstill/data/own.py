"""Data sets of the user's own: any map-style ``Dataset`` of ``(image, label)``, in memory or by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, TensorDataset

from potstill.data.dataset import ImageSet, check_labels
from potstill.data.files import to_tensor
from potstill.errors import UserError

__all__ = ["OwnSet", "from_datasets", "parts_of"]


class OwnSet(ImageSet):
    """A map-style data set that gives ``(image, label)``.

    Images may be PIL images, uint8 arrays or tensors ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``, or float
    tensors ``(C, H, W)``, which are taken as they are. Labels are read once, by going through the set
    unless it has ``targets`` (as torchvision's sets do) or is a ``TensorDataset``.

    Args:
        dataset: The data set.
        class_names: Names in the order of the labels; its ``classes`` or numbers by default.
        size: Side to resize PIL images to.
        where: What messages call it.

    Raises:
        UserError: If it is iterable only, empty, or its samples are of another form.
    """

    def __init__(self, dataset: Any, class_names: Sequence[str] | None, size: int | None, where: str) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise UserError(
                where,
                f"expected a map-style data set (with __getitem__ and __len__), got "
                f"{type(dataset).__name__}: a stream has no sample numbers, so its order could neither be "
                "shuffled nor resumed",
            )
        if len(dataset) == 0:
            raise UserError(where, "expected samples, got an empty data set")
        self.dataset = dataset
        self.side = size
        self.where = where
        self.labels = self._read_labels()
        names = class_names or getattr(dataset, "classes", None)
        self.class_names = tuple(str(name) for name in names or range(int(self.labels.max()) + 1))
        check_labels(self.labels, self.class_names, where)

    def _read_labels(self) -> Tensor:
        if isinstance(self.dataset, TensorDataset):
            labels: Any = self.dataset.tensors[1]
        elif getattr(self.dataset, "targets", None) is not None:
            labels = self.dataset.targets
        else:
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

    def _pair(self, position: int) -> tuple[Any, Any]:
        sample = self.dataset[position]
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
            rows = self.dataset.tensors[0][torch.as_tensor(indices)]
            return rows.float() if rows.is_floating_point() else rows
        images = [self._image(self._pair(int(index))[0]) for index in indices]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise UserError(self.where, f"images of mixed shapes {sorted(shapes)}; resize them")
        return torch.stack(images)

    def _image(self, image: Any) -> Tensor:
        if hasattr(image, "convert"):
            return to_tensor(image, self.side)
        tensor = torch.as_tensor(image)
        if tensor.is_floating_point():
            return tensor.float()
        if tensor.dim() == 2:
            return tensor.unsqueeze(0)
        return (
            tensor.permute(2, 0, 1)
            if tensor.shape[0] not in (1, 3) and tensor.shape[-1] in (1, 3)
            else tensor
        )


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
        size: Side to resize PIL images to.
        where: Dotted key for messages.
    """
    train = OwnSet(parts["train"], class_names, size, f"{where}train")
    found: dict[str, ImageSet] = {"train": train}
    for part in ("validation", "test"):
        if parts.get(part) is not None:
            found[part] = OwnSet(parts[part], train.class_names, size, f"{where}{part}")
    return found
