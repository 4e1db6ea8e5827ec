"""What every kind of data becomes: samples that answer to a list of positions; labelled images."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from potstill.errors import UserError

__all__ = ["ImageSet", "LabelledSet", "Rows", "SampleSet", "Subset", "check_labels"]

HASHED_SAMPLES = 256

Rows = tuple[Any, Any, Tensor]
"""Samples, what is to be learnt of each, and their positions ``(n,)``; a task knows the first two."""


def _spaced(count: int, most: int) -> list[int]:
    """Up to ``most`` positions, from the first to the last."""
    return [int(each) for each in np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))]


def _hash(part: Any, digest: hashlib._Hash) -> None:
    """Feed tensors, arrays, and anything of them by name or in order."""
    if isinstance(part, Mapping):
        part = [item for pair in sorted(part.items()) for item in pair]
    if isinstance(part, Tensor):
        part = part.contiguous().numpy()
    if isinstance(part, np.ndarray):
        digest.update(part.tobytes())
    elif isinstance(part, Sequence) and not isinstance(part, str | bytes):
        for item in part:
            _hash(item, digest)
    else:
        digest.update(repr(part).encode())


class SampleSet(Dataset[Rows], ABC):
    """One part of a run's data, whatever its samples are."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """A batch: the samples at ``indices``, their targets, and their positions ``(n,)``."""

    def __getitem__(self, position: int) -> Rows:
        return self.__getitems__([position])

    @property
    def in_memory(self) -> bool:
        """Whether samples are there without decoding, so that worker processes would only slow it."""
        return False

    def fingerprint(self, samples: int = HASHED_SAMPLES) -> str:
        """Hash of up to ``samples`` evenly spaced samples and their targets."""
        digest = hashlib.sha256()
        for part in self.__getitems__(_spaced(len(self), samples)):
            _hash(part, digest)
        return digest.hexdigest()

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """How long each sample is, ``(N,)``, where batches of like lengths are wanted; else ``None``."""
        return None


class LabelledSet(SampleSet):
    """Samples that each belong to a class.

    Attributes:
        labels: ``(N,)`` int64 on the CPU.
        class_names: One name a class, in the order of the labels.
    """

    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> Self:
        """The samples at ``indices``, renumbered from 0."""


class ImageSet(LabelledSet):
    """Labelled images of one size."""

    @abstractmethod
    def images(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices``: ``(n, C, H, W)``, uint8 or float32."""

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Images ``(n, C, H, W)``, labels ``(n,)`` and positions ``(n,)`` of a batch."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return self.images(indices), self.labels[index], index

    @property
    def channels(self) -> int:
        """Number of channels, 1 or 3."""
        return int(self.images([0]).shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.images([0]).shape[2:]
        return int(height), int(width)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image, ``(C, H, W)``."""
        return (self.channels, *self.size)

    @property
    def floats(self) -> bool:
        """Whether images come as floats, prepared by their owner, and not as integers 0 to 255."""
        return self.images([0]).is_floating_point()

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The samples at ``indices``, renumbered from 0."""
        return Subset(self, indices)

    def fingerprint(self, samples: int = HASHED_SAMPLES) -> str:
        """Hash of the labels and of up to ``samples`` evenly spaced images."""
        chosen = _spaced(len(self), samples)
        digest = hashlib.sha256(self.labels.numpy().tobytes())
        digest.update(self.images(chosen).contiguous().numpy().tobytes())
        return digest.hexdigest()


class Subset(ImageSet):
    """Some samples of another set, renumbered from 0."""

    def __init__(self, whole: ImageSet, indices: Sequence[int]) -> None:
        self.whole = whole
        self.indices = np.asarray(indices, dtype=np.int64)
        self.labels = whole.labels[torch.from_numpy(self.indices)]
        self.class_names = whole.class_names

    def images(self, indices: Sequence[int]) -> Tensor:
        """The images at ``indices`` of the subset."""
        return self.whole.images(self.indices[np.asarray(indices, dtype=np.int64)].tolist())

    @property
    def in_memory(self) -> bool:
        """As the whole set."""
        return self.whole.in_memory


def check_labels(labels: Tensor, class_names: Sequence[str], where: str) -> None:
    """Refuse labels that no classifier can be trained on.

    Raises:
        UserError: If there are none, only one class, or labels outside the class names.
    """
    if len(labels) == 0:
        raise UserError(where, "expected samples, got an empty data set")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(class_names):
        raise UserError(where, f"expected labels 0 to {len(class_names) - 1}, got {low} to {high}")
    if low == high:
        raise UserError(where, f"expected at least two classes, got only class {low} ({class_names[low]})")
