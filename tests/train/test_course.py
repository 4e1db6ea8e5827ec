"""Where each step is: stages in lengths of the training, the same batches in each length."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from potstill.batch import Batch
from potstill.data.arrays import ArraySet
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.schemes import Stage
from potstill.train import TrainConfig
from potstill.train.course import Course

GENERATIONS = (Stage("first"), Stage("second"))


def course(stages: tuple[Stage, ...], **options: object) -> Course:
    rng = np.random.default_rng(0)
    data = ArraySet(
        rng.integers(0, 255, (24, 2, 2)).astype(np.uint8), np.arange(24) % 3, ("a", "b", "c"), "test"
    )
    config = TrainConfig(**{"batch_size": 4, "epochs": 1.5, **options})
    return Course(Loader(data, batch_size=4, seed=0), config, stages)


def test_stages_follow_each_other_in_lengths_of_the_training() -> None:
    found = course(GENERATIONS)
    assert found.total == 18
    places = [(place.stage.name, place.step, place.steps) for place in map(found.place, range(18))]
    assert places == [(name, step, 9) for name in ("first", "second") for step in range(9)]
    assert found.place(12).progress == pytest.approx(3 / 9)
    with pytest.raises(ValueError, match="expected a step below 18, got 18"):
        found.place(18)


@pytest.mark.parametrize(("steps", "first"), [(20, 2), (5, 1), (11, 2)])
def test_parts_of_one_length_begin_with_at_least_a_step(steps: int, first: int) -> None:
    found = course((Stage("before", 0.1), Stage("train", 0.9)), steps=steps)
    assert found.total == steps
    assert sum(found.place(step).stage.name == "before" for step in range(steps)) == first


def test_epochs_end_with_each_length() -> None:
    found = course(GENERATIONS)
    ends = [done for done in range(1, 19) if found.ends_epoch(done)]
    assert ends == [6, 9, 15, 18]
    assert [found.epoch(done) for done in ends] == [1, 2, 3, 4]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_length_sees_the_same_batches_and_views(accumulate: int) -> None:
    found = course(GENERATIONS, accumulate=accumulate)

    def prepare(images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, view: int) -> Batch:
        return Batch({"student": images}, labels, None, index, view)

    def seen(begin: int, count: int) -> list[list[tuple[list[int], int]]]:
        batches = found.batches(begin, prepare)
        groups = itertools.islice(batches, count)
        return [[(one.index.tolist(), one.view) for one in group] for group in groups]

    whole = seen(0, found.total)
    assert whole[: found.length] == whole[found.length :]
    for begin in range(found.total):
        assert seen(begin, found.total - begin) == whole[begin:]


def test_patience_is_refused_for_several_stages() -> None:
    with pytest.raises(UserError, match=r"train.patience: has no meaning .* \(first, second\)"):
        course(GENERATIONS, patience=2)
