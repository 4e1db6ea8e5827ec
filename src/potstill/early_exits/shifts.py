"""Images of a kind that no calibration has seen: blurred, noisy, darker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from potstill.data import ImageSet

__all__ = ["SHIFTS", "Shifted"]

SHIFTS: Mapping[str, str] = {
    "blurred": "a Gaussian of 0.03 of the image's side",
    "noisy": "noise with a deviation of 0.08 of the range of values",
    "darker": "values at 0.5 of what they were",
}
BLUR, NOISE, DARKNESS = 0.03, 0.08, 0.5
LOOKED_AT = 64  # images that tell the range of float values


class Shifted(ImageSet):
    """Another set's images, changed; labels stay.

    Args:
        whole: The set.
        shift: One of ``SHIFTS``.

    Noise is a function of an image's number alone, so that any batch sees the same.
    """

    def __init__(self, whole: ImageSet, shift: str) -> None:
        assert shift in SHIFTS
        self.whole = whole
        self.shift = shift
        self.labels = whole.labels
        self.class_names = whole.class_names
        some = whole.images(list(range(min(LOOKED_AT, len(whole)))))
        floats = some.is_floating_point()
        self.low, self.high = (float(some.min()), float(some.max())) if floats else (0.0, 255.0)

    @property
    def in_memory(self) -> bool:
        """As the whole set."""
        return self.whole.in_memory

    def images(self, indices: Sequence[int]) -> Tensor:
        """The changed images at ``indices``, ``(N, C, H, W)``, in the type that they had."""
        given = self.whole.images(indices)
        values = given.float()
        if self.shift == "blurred":
            values = _blurred(values)
        elif self.shift == "noisy":
            values = values + NOISE * (self.high - self.low) * _noise(indices, values)
        else:
            values = self.low + DARKNESS * (values - self.low)
        values = values.clamp(self.low, self.high)
        return values.to(given.dtype) if given.is_floating_point() else values.round().to(given.dtype)


def _blurred(images: Tensor) -> Tensor:
    deviation = BLUR * min(images.shape[2:])
    reach = min(max(1, round(3 * deviation)), min(images.shape[2:]) - 1)
    steps = torch.arange(-reach, reach + 1, dtype=images.dtype)
    line = torch.exp(-(steps**2) / (2 * deviation**2))
    line = line / line.sum()
    channels = images.shape[1]
    for shape, edges in (((1, 1, 1, -1), (reach, reach, 0, 0)), ((1, 1, -1, 1), (0, 0, reach, reach))):
        kernel = line.reshape(shape).repeat(channels, 1, 1, 1)
        images = conv2d(pad(images, edges, mode="replicate"), kernel, groups=channels)
    return images


def _noise(indices: Sequence[int], images: Tensor) -> Tensor:
    shape = tuple(images.shape[1:])
    drawn = [np.random.default_rng(int(index)).standard_normal(shape, dtype=np.float32) for index in indices]
    return torch.from_numpy(np.stack(drawn)) if drawn else torch.zeros_like(images)
