"""Views are a pure function of (seed, view, index), and look like what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import interpolate

from potstill.assembly.load import load_experiment, search_path
from potstill.augment import Augment, AugmentConfig, uniform
from potstill.config import load
from potstill.errors import UserError
from potstill.run import run


def images(count: int = 64, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def test_a_view_does_not_depend_on_batch_order_or_size() -> None:
    augment = Augment(AugmentConfig(flip=0.5, crop=2), seed=5)
    pictures, index = images(), torch.arange(100, 164)
    whole = augment(pictures, index, view=3)
    order = torch.randperm(64)
    assert torch.equal(augment(pictures[order], index[order], view=3), whole[order])
    single = torch.cat([augment(pictures[n : n + 1], index[n : n + 1], view=3) for n in range(64)])
    assert torch.equal(single, whole)


@pytest.mark.parametrize("change", ["seed", "view", "index"])
def test_another_seed_view_or_sample_is_another_view(change: str) -> None:
    config, pictures, index = AugmentConfig(flip=0.5, crop=2), images(), torch.arange(64)
    first = Augment(config, seed=0)(pictures, index, view=0)
    seed, view = int(change == "seed"), int(change == "view")
    second = Augment(config, seed=seed)(pictures, index + 64 * (change == "index"), view=view)
    same = (first == second).flatten(1).all(dim=1).float().mean()
    assert float(same) < 0.25


def test_crops_and_flips_are_what_they_say() -> None:
    pictures, index = images(200, 6), torch.arange(200)
    views = Augment(AugmentConfig(flip=0.5, crop=1), seed=1)(pictures, index, view=0)
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1))
    seen = set()
    for number in range(200):
        matches = [
            (top, left, flip)
            for top in range(3)
            for left in range(3)
            for flip in (False, True)
            if torch.equal(
                views[number],
                (lambda cut, flip: cut.flip(2) if flip else cut)(
                    padded[number, :, top : top + 6, left : left + 6], flip
                ),
            )
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) == 18


def test_the_uniform_numbers_are_uniform_and_unrelated() -> None:
    index = torch.arange(20_000)
    draws = [
        uniform(index, seed=seed, view=view, draw=draw)
        for seed, view, draw in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    for numbers in draws:
        assert 0 <= float(numbers.min()) <= float(numbers.max()) < 1
        assert float(numbers.mean()) == pytest.approx(0.5, abs=0.01)
        assert torch.histc(numbers.float(), 10, 0, 1).tolist() == pytest.approx([2000] * 10, rel=0.1)
        assert abs(float(torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1])) < 0.03
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert float(correlations.abs().max()) < 0.03


def test_floats_are_left_floats_and_nothing_does_nothing() -> None:
    pictures = images().float() / 255
    assert torch.equal(Augment(AugmentConfig(), seed=0)(pictures, torch.arange(64), view=0), pictures)
    assert (
        Augment(AugmentConfig(crop=2, flip=1.0), seed=0)(pictures, torch.arange(64), 0).dtype == torch.float32
    )


def test_padding_as_large_as_the_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"augment.crop: must be smaller than the image \(8x8\), got 8"):
        Augment(AugmentConfig(crop=8), seed=0)(images(), torch.arange(64), view=0)


POOLED = """
from torch import nn


def pooled(num_classes):
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(36, num_classes))
"""


def test_each_network_has_a_resolution_of_its_own_from_the_same_crop(tiny: Any, tmp_path: Any) -> None:
    (tiny.root / "pooled.py").write_text(POOLED)
    overrides = ["student={model: 'pooled.py:pooled', size: 4, mean: [0.5], std: [0.25]}", "data.size=8"]
    overrides += ["teacher.size=6", "distill={kl: {}}", "augment={crop: 2, flip: 0.5}"]
    experiment = load_experiment(load(tiny.recipe, overrides), search_path(tiny.root))
    loader, prepare = experiment.training(0)
    rows = loader.read(list(range(16)), 3)
    batch = prepare(*rows, 3)
    assert rows[0].shape == (16, 1, 8, 8)
    crops = Augment(experiment.recipe.augment, seed=0)(rows[0], rows[2], 3).float() / 255
    for role, side in (("student", 4), ("teacher", 6)):
        expected = (interpolate(crops, (side, side), mode="bilinear", antialias=True) - 0.5) / 0.25
        torch.testing.assert_close(batch.tensor(role).contiguous(), expected)
    found = run(
        tiny.recipe, data=tiny.root, out=tmp_path / "run", overrides=overrides, echo=lambda line: None
    )
    assert found.data["models"]["student"]["macs"] < found.data["models"]["teacher"]["macs"]
