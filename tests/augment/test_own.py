"""A function of the user's own among the transforms, and data that do not hold still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.augment import Augment, AugmentConfig
from potstill.augment.own import Own
from potstill.config import dump, load
from potstill.data.arrays import ArraySet
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.run import run

MINE = """
import random

import numpy
import torch

own_generator = torch.Generator().manual_seed(0)
calls = []


def darker(images, draws):
    calls.append(len(images))
    return (images * (1 - 0.5 * draws(1))[:, None, None, None]).to(images.dtype)


def torch_noise(images, draws):
    return images + torch.randint(0, 3, images.shape, dtype=images.dtype)


def seldom(images, draws):
    return images.flip(3) if random.random() < 0.2 else images


def numpy_flip(images, draws):
    return images.flip(3) if numpy.random.rand() < 0.5 else images


def own_noise(images, draws):
    return images + torch.randint(0, 3, images.shape, dtype=images.dtype, generator=own_generator)


def batch_mean(images, draws):
    return (images.float() - images.float().mean() + 100).to(images.dtype)


def cut(images, draws):
    return images[:, :, 1:]


def floats(images, draws):
    return images / 255


def broken(images, draws):
    return images.no_such_thing()


number = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def augment(folder: Path, name: str, seed: int = 0, **options: Any) -> Augment:
    config = AugmentConfig(own=Own(call=f"mine.py:{name}", **options), flip=0.5)
    return Augment(config, seed=seed, search=[folder])


def pictures(count: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 200, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)


def test_a_function_of_ones_own_is_as_pure_as_the_others(mine: Path) -> None:
    images, index = pictures(), torch.arange(100, 140)
    whole = augment(mine, "darker")(images, index, view=3)
    plain = Augment(AugmentConfig(flip=0.5), seed=0)(images, index, view=3)
    factor = whole.double().sum(dim=(1, 2, 3)) / plain.double().sum(dim=(1, 2, 3))
    assert 0.45 < float(factor.min()) < 0.6
    assert 0.9 < float(factor.max()) <= 1
    order = torch.randperm(40)
    again = augment(mine, "darker")(images[order], index[order], view=3)
    assert torch.equal(again, whole[order])
    single = augment(mine, "darker")
    assert torch.equal(torch.cat([single(images[n : n + 1], index[n : n + 1], 3) for n in range(40)]), whole)
    assert not torch.equal(augment(mine, "darker", seed=1)(images, index, view=3), whole)


def test_it_has_a_probability_and_a_place_in_the_order(mine: Path) -> None:
    images, index = pictures(), torch.arange(40)
    some = augment(mine, "darker", probability=0.5)(images, index, view=0)
    plain = Augment(AugmentConfig(flip=0.5), seed=0)(images, index, view=0)
    same = (some == plain).flatten(1).all(dim=1)
    assert 8 < int(same.sum()) < 32
    config = AugmentConfig(own=Own(call="mine.py:darker"), flip=1.0, order=("own", "flip"))
    assert [name for name, _ in config.transforms()] == ["own", "flip"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch_noise", "mine.py:torch_noise gave two results for the same images: its random numbers"),
        ("seldom", r"take them from draws\(1\), draws\(2\)"),
        ("numpy_flip", "a generator of its own or a global one"),
        ("own_noise", "a generator of its own"),
        ("batch_mean", "gave another result for an image alone than in a batch of 4"),
        ("cut", r"expected images \(4, 3, 6, 6\) torch.uint8, got \(4, 3, 5, 6\) torch.uint8"),
        ("floats", r"expected images \(4, 3, 6, 6\) torch.uint8, got \(4, 3, 6, 6\) torch.float32"),
        ("broken", r"failed on images \(4, 3, 6, 6\): AttributeError: .*no_such_thing"),
        ("number", "expected a function, got int 'mine.py:number'"),
        ("drker", "has no attribute 'drker'; did you mean 'darker'"),
    ],
)
def test_what_cannot_be_repeated_is_refused(mine: Path, name: str, message: str) -> None:
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=message) as caught:
        augment(mine, name)(pictures(), torch.arange(40), view=0)
    assert caught.value.where == "augment.own"
    assert torch.equal(torch.get_rng_state(), before)


def test_in_a_recipe_it_is_tried_before_anything_is_written(tiny: Any, tmp_path: Path) -> None:
    (tiny.root / "mine.py").write_text(MINE)
    with pytest.raises(UserError, match=r"augment.own: mine.py:torch_noise gave two results"):
        run(
            tiny.recipe,
            data=tiny.root,
            out=tmp_path / "run",
            overrides=["augment.own='mine.py:torch_noise'"],
            echo=lambda line: None,
        )
    assert not (tmp_path / "run").exists()
    overrides = ["augment.own={call: 'mine.py:darker', probability: 0.5}", "train.epochs=1"]
    assert load(tiny.recipe, overrides).augment.own == Own(call="mine.py:darker", probability=0.5)
    assert "call: mine.py:darker" in dump(load(tiny.recipe, overrides))
    found = run(
        tiny.recipe, data=tiny.root, out=tmp_path / "run", overrides=overrides, echo=lambda line: None
    )
    assert found.verdict in ("better", "same", "worse")


def test_data_that_change_between_epochs_are_noticed() -> None:
    images = np.arange(40 * 4, dtype=np.uint8).reshape(40, 2, 2)
    loader = Loader(ArraySet(images, np.arange(40) % 2, ("a", "b"), "own"), batch_size=8, seed=0)
    assert len(list(loader.epoch(0))) == len(list(loader.epoch(1))) == 5
    images[39, 1, 1] += 1
    with pytest.raises(UserError, match=r"data: samples that were read again before epoch 3 are not what"):
        next(loader.epoch(2))


def test_a_data_set_that_draws_at_random_is_refused_before_a_run(tiny: Any, tmp_path: Path) -> None:
    (tiny.root / "noisy.py").write_text(
        "import torch\n\n\n"
        "class Noisy(torch.utils.data.Dataset):\n"
        "    def __len__(self):\n"
        "        return 60\n\n"
        "    def __getitem__(self, position):\n"
        "        image = torch.randint(0, 100, (1, 6, 6), dtype=torch.uint8)\n"
        "        image[:, :, 2 * (position % 3) : 2 * (position % 3) + 2] += 90\n"
        "        return image, position % 3\n"
    )
    with pytest.raises(UserError, match="data: samples that were read again before epoch 2"):
        run(
            tiny.recipe,
            data=tiny.root,
            out=tmp_path / "run",
            overrides=["data.kind=own", "data.path='noisy.py:Noisy'"],
            echo=lambda line: None,
        )
    assert not (tmp_path / "run").exists()
