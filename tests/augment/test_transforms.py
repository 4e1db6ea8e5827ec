"""Every transform against torchvision's on single images, and against what it promises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.augment import Augment, AugmentConfig, colour, policies
from potstill.augment.colour import Colour
from potstill.augment.draws import Draws, Transform
from potstill.augment.erasing import Cutout, Erasing
from potstill.augment.geometry import ResizedCrop, Rotation, box_sides, resized_boxes, turned, warped
from potstill.augment.policies import OPERATIONS, RAND, TRIVIAL, RandAugment, TrivialAugment, operated

functional = pytest.importorskip("torchvision.transforms.v2.functional")

EVERY: dict[str, Transform] = {
    "resized_crop": ResizedCrop(least=0.2),
    "rotation": Rotation(degrees=40),
    "colour": Colour(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2),
    "rand_augment": RandAugment(),
    "trivial_augment": TrivialAugment(),
    "cutout": Cutout(size=5, fill="mean"),
    "erasing": Erasing(probability=1.0),
}


def images(count: int = 40, height: int = 12, width: int = 12, channels: int = 3) -> Tensor:
    """Smooth pictures, as nearest-pixel and bilinear reading are compared in them."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.rand(count, channels, 4, 4, generator=generator) * 255
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).byte()


def draws(count: int) -> Draws:
    return Draws(torch.arange(count) * 7 + 3, seed=2, view=5, first=0)


def assert_like(ours: Tensor, theirs: Tensor, *, off: int = 1, share: float = 0.02) -> None:
    """Equal but for a rounding here and there."""
    assert ours.dtype == theirs.dtype == torch.uint8
    difference = (ours.int() - theirs.int()).abs()
    assert int(difference.max()) <= off
    assert float((difference > 0).float().mean()) <= share


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EVERY)
def test_a_view_does_not_depend_on_the_rest_of_the_batch(name: str, channels: int) -> None:
    augment = Augment(AugmentConfig(**{name: EVERY[name]}), seed=3)
    pictures, index = images(40, channels=channels), torch.arange(500, 540)
    whole = augment(pictures, index, view=2)
    assert (whole.shape, whole.dtype) == (pictures.shape, pictures.dtype)
    assert not torch.equal(whole, pictures)
    single = torch.cat([augment(pictures[n : n + 1], index[n : n + 1], view=2) for n in range(40)])
    assert torch.equal(single, whole)
    order = torch.randperm(40)
    assert torch.equal(augment(pictures[order], index[order], view=2), whole[order])
    assert torch.equal(pictures, images(40, channels=channels))  # nothing was changed in place
    assert not torch.equal(augment(pictures, index, view=3), whole)


@pytest.mark.parametrize("name", EVERY)
def test_a_probability_takes_its_share_of_the_images(name: str) -> None:
    sometimes = replace(EVERY[name], probability=0.3)  # type: ignore[type-var]
    pictures = images(300)
    always = Augment(AugmentConfig(**{name: EVERY[name]}), seed=0)(pictures, torch.arange(300), 0)
    found = Augment(AugmentConfig(**{name: sometimes}), seed=0)(pictures, torch.arange(300), 0)
    changed = (found != pictures).flatten(1).any(1)
    assert torch.equal(found[changed], always[changed])
    assert 0.15 < float(changed.float().mean()) < 0.4


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (colour.brightness, "adjust_brightness", (0.0, 0.4, 1.0, 1.7)),
        (colour.contrast, "adjust_contrast", (0.0, 0.4, 1.0, 1.7)),
        (colour.saturation, "adjust_saturation", (0.0, 0.4, 1.0, 1.7)),
        (colour.sharpness, "adjust_sharpness", (0.0, 0.4, 1.0, 1.7)),
        (colour.hue, "adjust_hue", (-0.5, -0.21, 0.0, 0.13, 0.5)),
        (colour.posterize, "posterize", (1, 3, 7, 8)),
        (colour.solarize, "solarize", (0.0, 100.5, 255.0)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_torchvisions(ours: Any, theirs: str, factors: tuple[float, ...], channels: int) -> None:
    pictures = images(len(factors), channels=channels)
    found = ours(pictures, torch.tensor(factors, dtype=torch.float64))
    for row, factor in enumerate(factors):
        assert_like(found[row], getattr(functional, theirs)(pictures[row], factor), share=0.05)


@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
def test_rotations_are_torchvisions(size: tuple[int, int]) -> None:
    angles = [-170.0, -33.3, 0.0, 12.5, 90.0]
    pictures = images(len(angles), *size)
    found = warped(pictures, turned(torch.tensor(angles, dtype=torch.float64)), "bilinear")
    for row, angle in enumerate(angles):
        expected = functional.rotate(
            pictures[row], angle, interpolation=functional.InterpolationMode.BILINEAR
        )
        assert_like(found[row], expected)


@pytest.mark.parametrize("box", [(0, 0, 12, 10), (3, 1, 5, 7), (11, 9, 1, 1), (0, 4, 12, 3)])
def test_resized_boxes_are_torchvisions(box: tuple[int, int, int, int]) -> None:
    pictures = images(3, 12, 10).float()
    found = resized_boxes(pictures, *(torch.tensor([side] * 3) for side in box))
    torch.testing.assert_close(
        found, functional.resized_crop(pictures, *box, size=[12, 10]), atol=1e-3, rtol=0
    )


def reference(name: str, picture: Tensor, level: float, sign: int, *, wide: bool) -> Tensor:
    """One operation of a policy through torchvision's functions, as its transforms call them."""
    side = {"x": picture.shape[2], "y": picture.shape[1]}.get(name[-1], 0)
    length = 32.0 if wide else 150 / 331 * side
    strength = sign * level * (0.99 if wide else 0.9)
    affine: dict[str, Any] = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    if name.startswith("shear"):
        tilt = math.degrees(math.atan(sign * level * (0.99 if wide else 0.3)))
        affine["shear"] = [tilt, 0.0] if name == "shear_x" else [0.0, tilt]
        return functional.affine(picture, **affine, center=[0, 0])
    if name.startswith("translate"):
        step = int(sign * level * length)
        affine["translate"] = [step, 0] if name == "translate_x" else [0, step]
        return functional.affine(picture, **affine)
    if name == "rotate":
        return functional.rotate(picture, sign * level * (135 if wide else 30))
    if name in ("brightness", "saturation", "contrast", "sharpness"):
        return getattr(functional, f"adjust_{name}")(picture, 1 + strength)
    if name == "posterize":
        return functional.posterize(picture, round(8 - level * (6 if wide else 4)))
    if name == "solarize":
        return functional.solarize(picture, 255 * (1 - level))
    return picture if name == "identity" else getattr(functional, name)(picture)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_operations_of_the_policies_are_torchvisions(name: str, wide: bool) -> None:
    levels, signs = [0.0, 0.1, 0.3, 0.3, 1.0, 1.0], [1, -1, 1, -1, 1, -1]
    pictures = images(len(levels), 16, 20)
    found = operated(
        pictures,
        torch.full((len(levels),), list(OPERATIONS).index(name)),
        torch.tensor(levels, dtype=torch.float64),
        torch.tensor(signs) < 0,
        TRIVIAL if wide else RAND,
    )
    warps = name in ("shear_x", "shear_y", "rotate")
    for row, (level, sign) in enumerate(zip(levels, signs, strict=True)):
        expected = reference(name, pictures[row], level, sign, wide=wide)
        # a pixel in the middle between two may be read from the other one
        assert_like(found[row], expected, off=255 if warps else 1, share=0.03)


def test_the_policies_name_torchvisions_operations() -> None:
    transforms = pytest.importorskip("torchvision.transforms.v2")
    names = {"color": "saturation"}
    for theirs in (transforms.RandAugment, transforms.TrivialAugmentWide):
        expected = [name.lower() for name in theirs._AUGMENTATION_SPACE]
        assert [names.get(name, name) for name in expected] == [name.replace("_", "") for name in OPERATIONS]
    assert transforms.RandAugment().num_magnitude_bins == policies.BINS


def test_policies_use_every_operation_evenly_and_in_both_directions() -> None:
    which = draws(7000).whole(1, len(OPERATIONS))
    counts = torch.bincount(which, minlength=len(OPERATIONS))
    assert counts.tolist() == pytest.approx([500] * len(OPERATIONS), rel=0.2)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(1e-4, 1.0),
    st.floats(0.05, 1.0),
    st.floats(1.0, 20.0),
)
def test_boxes_fit_their_image(height: int, width: int, share: float, low: float, high: float) -> None:
    shares, at = torch.full((20,), share, dtype=torch.float64), torch.linspace(0, 0.999, 20).double()
    rows, columns = box_sides(shares, at, (low, high), height, width)
    assert 1 <= int(rows.min()) <= int(rows.max()) <= height
    assert 1 <= int(columns.min()) <= int(columns.max()) <= width


def test_boxes_have_the_area_and_the_shape_that_was_asked_for() -> None:
    share, at = draws(2000).between(1, 0.02, 0.33), draws(2000)(2)
    rows, columns = box_sides(share, at, (0.5, 2.0), 200, 200)
    torch.testing.assert_close(rows * columns / 40_000.0, share.float(), rtol=0.06, atol=0.0)
    ratio = (columns / rows).log2()
    assert (float(ratio.min()), float(ratio.max())) == pytest.approx((-1, 1), abs=0.1)
    assert float(ratio.mean()) == pytest.approx(0.0, abs=0.05)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(0, 1000))
def test_cutout_covers_one_square_or_what_is_left_of_it(size: int, view: int) -> None:
    pictures = torch.full((30, 3, 12, 12), 9, dtype=torch.uint8)
    found = Augment(AugmentConfig(cutout=Cutout(size=size)), seed=0)(pictures, torch.arange(30), view)
    for covered in (found == 0).all(1):
        rows, columns = covered.any(1).sum(), covered.any(0).sum()
        assert int(covered.sum()) == int(rows * columns)
        assert size // 2 <= int(min(rows, columns)) <= int(max(rows, columns)) <= size
        assert int(rows) >= 1


def test_erasing_covers_a_box_of_the_area_that_was_asked_for() -> None:
    pictures = torch.full((200, 1, 50, 50), 9, dtype=torch.uint8)
    erasing = Erasing(probability=0.25, area=(0.1, 0.2))
    found = Augment(AugmentConfig(erasing=erasing), seed=0)(pictures, torch.arange(200), 0)
    areas = (found == 0).double().mean(dim=(1, 2, 3))
    assert 0.15 < float((areas > 0).double().mean()) < 0.35
    assert 0.09 < float(areas[areas > 0].min()) < float(areas.max()) < 0.22


def test_the_mean_colour_covers_what_is_asked_for() -> None:
    pictures = images(5)
    found = Augment(AugmentConfig(cutout=Cutout(size=12, fill="mean")), seed=0)(pictures, torch.arange(5), 0)
    mean = pictures.double().mean(dim=(2, 3)).floor().byte()
    changed = found != pictures
    expected = mean[:, :, None, None].expand_as(found)
    assert torch.equal(found[changed], expected[changed])
    assert changed.any()


def test_transforms_come_in_the_order_that_is_asked_for() -> None:
    pictures, index = images(20), torch.arange(20)
    crop, flip = ({"crop": 3}, {"flip": 1.0})
    usual = Augment(AugmentConfig(**crop, **flip), seed=0)(pictures, index, 0)
    other = Augment(AugmentConfig(**crop, **flip, order=("flip", "crop")), seed=0)(pictures, index, 0)
    cropped, flipped = (Augment(AugmentConfig(**one), seed=0) for one in (crop, flip))
    assert torch.equal(usual, flipped(cropped(pictures, index, 0), index, 0))
    assert torch.equal(other, cropped(flipped(pictures, index, 0), index, 0))
    assert not torch.equal(usual, other)


def test_floats_may_be_moved_and_covered_and_stay_floats() -> None:
    pictures = torch.randn(20, 3, 12, 12)
    config = AugmentConfig(
        crop=2, flip=0.5, resized_crop=ResizedCrop(), rotation=Rotation(degrees=9), cutout=Cutout(size=3)
    )
    found = Augment(config, seed=0)(pictures, torch.arange(20), 0)
    assert (found.shape, found.dtype) == (pictures.shape, torch.float32)
    assert bool(found.isfinite().all())
