"""Batches: the same for any start, rank count and worker count."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from potstill.data.arrays import ArraySet
from potstill.data.files import load_folder
from potstill.data.loader import Loader
from potstill.data.own import from_datasets
from potstill.errors import UserError


def numbers(count: int = 50) -> ArraySet:
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    return ArraySet(images, np.arange(count) % 2, ("even", "odd"), "test")


def test_an_epoch_is_a_permutation_and_each_epoch_another() -> None:
    loader = Loader(numbers(), batch_size=10, seed=0)
    first, second = (torch.cat([rows[2] for rows in loader.epoch(epoch)]) for epoch in (0, 1))
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()
    again = torch.cat([rows[2] for rows in Loader(numbers(), batch_size=10, seed=0).epoch(0)])
    assert torch.equal(again, first)
    other = torch.cat([rows[2] for rows in Loader(numbers(), batch_size=10, seed=1).epoch(0)])
    assert not torch.equal(other, first)


def test_images_labels_and_positions_belong_together() -> None:
    for images, labels, index in Loader(numbers(), batch_size=10, seed=0).epoch(3):
        assert images.shape == (10, 1, 2, 2)
        assert torch.equal(images[:, 0, 0, 0].long(), index)
        assert torch.equal(labels, index % 2)


def test_starting_in_the_middle_gives_the_rest() -> None:
    loader = Loader(numbers(), batch_size=10, seed=0)
    whole = [rows[2].tolist() for rows in loader.epoch(2)]
    assert [rows[2].tolist() for rows in loader.epoch(2, start_batch=3)] == whole[3:]


def test_ranks_share_each_global_batch() -> None:
    one = [rows[2].tolist() for rows in Loader(numbers(), batch_size=10, seed=0).epoch(0)]
    halves = [
        [
            rows[2].tolist()
            for rows in Loader(numbers(), batch_size=10, seed=0, rank=rank, world_size=2).epoch(0)
        ]
        for rank in (0, 1)
    ]
    assert [a + b for a, b in zip(*halves, strict=True)] == one


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_sample_exactly_once(world_size: int) -> None:
    seen = []
    for rank in range(world_size):
        loader = Loader(
            numbers(),
            batch_size=16,
            seed=0,
            shuffle=False,
            drop_last=False,
            rank=rank,
            world_size=world_size,
        )
        seen += [index for rows in loader.epoch(0) for index in rows[2].tolist()]
    assert sorted(seen) == list(range(50))


def pictures(folder: Path, *, corrupt: bool = False) -> Path:
    for name in ("dark", "light"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            value = number * 10 + 100 * (name == "light")
            Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(folder / name / f"{number}.png")
    if corrupt:
        (folder / "dark" / "4.png").write_bytes((folder / "dark" / "4.png").read_bytes()[:45])
    return folder


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_change_nothing(tmp_path: Path, workers: int) -> None:
    data = load_folder(pictures(tmp_path), None)["train"]
    expected = list(Loader(data, batch_size=4, seed=0).epoch(1))
    found = list(Loader(data, batch_size=4, seed=0, workers=workers).epoch(1))
    assert len(found) == len(expected) == 3
    for mine, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named_by_its_path_from_any_process(tmp_path: Path, workers: int) -> None:
    data = load_folder(pictures(tmp_path, corrupt=True), None)["train"]
    with pytest.raises(UserError, match=r"cannot decode the image .*dark.4\.png"):
        list(Loader(data, batch_size=4, seed=0, workers=workers).epoch(0))


class Noise:
    """A user's set that draws its images at random, and may break."""

    def __init__(self, broken: int = -1) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 12

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        if position == self.broken and torch.utils.data.get_worker_info() is not None:
            raise RuntimeError("my own mistake")
        return torch.rand(1, 2, 2) + random.random() + np.random.rand(), position % 2


def test_a_set_that_draws_at_random_gives_the_same_after_a_resume() -> None:
    data = from_datasets({"train": Noise()}, None, None, "")["train"]
    before = torch.get_rng_state()
    whole, rest, other = (
        [rows[0] for rows in Loader(data, batch_size=2, seed=0, workers=workers).epoch(epoch, start)]
        for workers, epoch, start in ((2, 0, 0), (1, 0, 3), (2, 1, 0))
    )
    assert torch.equal(torch.get_rng_state(), before)  # the run's own draws do not move
    assert torch.equal(torch.stack(rest), torch.stack(whole[3:]))
    assert not torch.isin(torch.stack(other), torch.stack(whole)).any()
    assert len(torch.stack(whole).unique()) == 12 * 4  # no worker repeats another's numbers


def test_what_a_users_set_raises_in_a_worker_is_not_a_dead_worker() -> None:
    data = from_datasets({"train": Noise(broken=7)}, None, None, "")["train"]
    with pytest.raises(RuntimeError, match="my own mistake"):
        list(Loader(data, batch_size=4, seed=0, workers=1).epoch(0))


def test_a_batch_bigger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.batch_size: must be at most the 50 samples, got 51"):
        Loader(numbers(), batch_size=51, seed=0)
    with pytest.raises(UserError, match="must be a multiple of the 3 processes, got 10"):
        Loader(numbers(), batch_size=10, seed=0, world_size=3)
