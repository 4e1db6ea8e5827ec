"""Average precision: torchmetrics' figures, and uncertainty that means what it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from potstill.metrics.average_precision import Truth, match

detection = pytest.importorskip("torchmetrics.detection")


def example(images: int = 16, seed: int = 0) -> tuple[list[Truth], list[np.ndarray]]:
    """Boxes of three classes, some crowds, some images without any; found ones lie about them."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for number in range(images):
        count = 0 if number % 7 == 3 else int(rng.integers(1, 8))
        corner = rng.uniform(0, 150, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 120, (count, 2))], axis=1)
        labels = rng.integers(1, 4, count)
        truth.append(Truth(boxes, labels, rng.random(count) < 0.1))
        extra = rng.uniform(0, 150, (3, 2))
        near = boxes + rng.normal(0, 3, boxes.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        rows = np.concatenate([near, np.concatenate([extra, extra + 30], axis=1)])
        classes = np.concatenate([labels, rng.integers(1, 4, 3)])
        found.append(np.concatenate([rows, rng.random((len(rows), 1)), classes[:, None]], axis=1))
    return truth, found


def test_it_is_what_torchmetrics_says() -> None:
    truth, found = example()
    judge = detection.MeanAveragePrecision(class_metrics=True, backend="pycocotools")
    judge.update(
        [
            {
                "boxes": torch.tensor(rows[:, :4]),
                "scores": torch.tensor(rows[:, 4]),
                "labels": torch.tensor(rows[:, 5]).long(),
            }
            for rows in found
        ],
        [
            {
                "boxes": torch.tensor(each.boxes),
                "labels": torch.tensor(each.labels),
                "iscrowd": torch.tensor(each.crowd).long(),
            }
            for each in truth
        ],
    )
    expected = judge.compute()
    ours = match(truth, found, 3)
    assert ours.mean() == pytest.approx(float(expected["map"]), abs=1e-6)
    assert ours.by_overlap() == pytest.approx(
        [float(expected[key]) for key in ("map_50", "map_75")], abs=1e-6
    )
    for area in ("small", "medium", "large"):
        assert ours.by_size()[area] == pytest.approx(float(expected[f"map_{area}"]), abs=1e-6)
    assert ours.by_class() == pytest.approx(expected["map_per_class"].tolist(), abs=1e-6)


def test_leaving_an_image_out_is_matching_without_it() -> None:
    truth, found = example(6)
    whole = match(truth, found, 3)
    values = whole.jackknife()
    for left in range(6):
        rest = [place for place in range(6) if place != left]
        without = match([truth[place] for place in rest], [found[place] for place in rest], 3).mean()
        assert values[left] == pytest.approx(6 * whole.mean() - 5 * without)


def test_jackknife_and_bootstrap_agree_on_the_error() -> None:
    matched = match(*example(40, seed=3), 3)
    assert matched.jackknife().std(ddof=1) / 40**0.5 == pytest.approx(matched.bootstrap()[0].std(), rel=0.35)


def test_bootstrap_draws_images_with_replacement() -> None:
    """Against matching the images of each draw anew, one as often as it was drawn."""
    truth, found = example(8)
    drawn = match(truth, found, 3).bootstrap(samples=3, seed=5)
    assert drawn.shape == (2, 3)
    rows = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=3)
    for place, row in enumerate(rows):
        again = np.repeat(np.arange(8), row)
        anew = match([truth[at] for at in again], [found[at] for at in again], 3)
        assert drawn[0, place] == pytest.approx(anew.mean())
        assert drawn[1, place] == pytest.approx(anew.by_overlap()[0])


def test_nothing_found_and_nothing_to_find() -> None:
    truth, _ = example(3)
    nothing = [np.zeros((100, 6))] * 3
    assert match(truth, nothing, 3).mean() == 0.0
    empty = Truth(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))
    alone = match([empty], [np.array([[0.0, 0.0, 5.0, 5.0, 0.9, 1.0]])], 2)
    assert alone.mean() == 0.0
    assert alone.by_class() == [None, None]
