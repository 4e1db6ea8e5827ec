"""Images of any form become the same tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data.pixels import as_pixels, resized, to_tensor


@pytest.mark.parametrize("floats", [False, True])
def test_layouts_agree(floats: bool) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    given = values.astype(np.float64) / 255 if floats else values
    expected = torch.from_numpy(given.transpose(0, 3, 1, 2)).to(torch.float32 if floats else torch.uint8)
    for form in (given, torch.from_numpy(given), given.transpose(0, 3, 1, 2)):
        assert torch.equal(as_pixels(form), expected)
    assert torch.equal(as_pixels(given[..., 0]), expected[:, :1])


@pytest.mark.parametrize("given", ["cat", [["cat"]], np.zeros((2, 4, 4), np.int64), torch.zeros(4), None])
def test_what_is_no_image_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        as_pixels(given)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("P", 3), ("CMYK", 3)]
)
def test_modes(mode: str, channels: int) -> None:
    picture = Image.new("RGB", (6, 4), (9, 9, 9)).convert(mode)
    assert to_tensor(picture, None).shape == (channels, 4, 6)
    assert to_tensor(picture, None, colour=True).shape == (3, 4, 6)
    assert to_tensor(picture, None, colour=False).shape == (1, 4, 6)


def test_sixteen_bits_keep_their_upper_eight() -> None:
    picture = Image.fromarray(np.array([[0, 255, 256, 65535]], np.uint16))
    assert to_tensor(picture, None).tolist() == [[[0, 0, 1, 255]]]
    with pytest.raises(ValueError, match="got floats"):
        to_tensor(Image.fromarray(np.zeros((2, 2), np.float32)), None)


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (16, 16), (8, 11)])
def test_tensors_are_resized_as_pillow_does(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    expected = to_tensor(Image.fromarray(values), 16).int()
    found = resized(as_pixels(values[None]), 16)
    assert found.dtype == torch.uint8
    assert int((found[0].int() - expected).abs().max()) <= 1
    floats = resized(as_pixels(values[None]).float(), 16)
    assert float((floats[0] - expected).abs().max()) <= 1.5
