"""What networks see of objects: against a loop, against COCO's matches, and where nothing is to see."""

from __future__ import annotations

import numpy as np
import pytest

from potstill.metrics.average_precision import Truth, match
from potstill.metrics.sightings import overlaps, sight, sure_from


def scattered(seed: int, count: int = 6, classes: int = 2) -> tuple[Truth, np.ndarray]:
    """An image with objects, and boxes near them and elsewhere, of distinct scores."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 30, (count, 2))], axis=1)
    truth = Truth(boxes, rng.integers(1, classes + 1, count), np.zeros(count, dtype=bool))
    near = boxes[rng.integers(0, count, 12)] + rng.normal(0, 2.5, (12, 4))
    labels = rng.integers(1, classes + 1, 12)
    found = np.concatenate([near, rng.permutation(12)[:, None] / 12, labels[:, None]], axis=1)
    return truth, np.concatenate([found, np.zeros((3, 6))])


def test_overlaps_are_those_of_a_loop() -> None:
    truth, found = scattered(0)
    for row, one in zip(overlaps(found[:, :4], truth.boxes), found, strict=True):
        for value, other in zip(row, truth.boxes, strict=True):
            width = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
            height = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
            areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (one, other)]
            assert value == pytest.approx(width * height / max(sum(areas) - width * height, 1e-12))


@pytest.mark.parametrize("seed", range(4))
def test_what_is_found_is_what_coco_finds(seed: int) -> None:
    truth, found = scattered(seed)
    seen = sight(truth, found)
    matched = match([truth], [found], 2)
    for label in (1, 2):
        hits = int(matched.ranked[label, "all"].hit[0].sum())
        assert int((seen.found[truth.labels == label] >= 0).sum()) == hits
        assert int(seen.right[found[:, 5] == label].sum()) == hits
    assert not (seen.right & seen.wrong).any()
    assert not seen.wrong[-3:].any()
    assert seen.right.sum() + seen.wrong.sum() == 12


def test_only_sure_boxes_count_and_each_object_once() -> None:
    there = Truth(np.array([[0.0, 0, 10, 10], [0, 0, 10, 9]]), np.array([1, 2]), np.zeros(2, dtype=bool))
    boxes = np.array([[0.0, 0, 10, 10, 0.6, 1], [0, 0, 10, 10, 0.9, 1], [0, 0, 10, 9, 0.3, 2]])
    seen = sight(there, boxes, sure=0.5)
    assert seen.found.tolist() == [1, -1]
    assert seen.right.tolist() == [False, True, False]
    assert seen.wrong.tolist() == [True, False, False]


def test_boxes_on_a_crowd_are_neither_right_nor_wrong() -> None:
    there = Truth(np.array([[0.0, 0, 40, 40]]), np.array([1]), np.array([True]))
    seen = sight(there, np.array([[2.0, 2, 8, 8, 0.9, 1], [2, 2, 8, 8, 0.9, 2]]))
    assert seen.found.tolist() == [-1]
    assert seen.wrong.tolist() == [False, True]


def test_the_score_that_counts_has_the_best_f1() -> None:
    """Against a loop over every score."""
    pairs = [scattered(seed) for seed in range(5)]
    truth, found = [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def f1(sure: float) -> float:
        seen = [sight(*pair, sure=sure) for pair in pairs]
        right, wrong = (sum(int(getattr(one, name).sum()) for one in seen) for name in ("right", "wrong"))
        return 2 * right / (right + wrong + sum(len(each.boxes) for each in truth))

    chosen = sure_from(truth, found)
    scores = {float(score) for each in found for score in each[each[:, 5] > 0, 4]}
    assert f1(chosen) == pytest.approx(max(map(f1, scores)))


def test_nothing_to_see_is_no_error() -> None:
    nothing = Truth(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool))
    seen = sight(nothing, np.array([[0.0, 0, 5, 5, 0.9, 1]]))
    assert seen.wrong.tolist() == [True]
    assert sure_from([nothing], [np.zeros((0, 6))]) == 1.0
