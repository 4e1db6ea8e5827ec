"""Which objects of an image a network sees: boxes that it is sure of, matched with the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.metrics.average_precision import Truth

__all__ = ["Sighted", "overlaps", "sight", "sure_from"]

OVERLAP = 0.5
"""From which overlap on, intersection over union, a box is of an object."""


@dataclass(frozen=True)
class Sighted:
    """What became of true and found boxes.

    Attributes:
        found: Of each object the box that found it, ``(n,)``; -1 for none, and for crowds.
        right: Whether each box found an object, ``(d,)``.
        wrong: Whether it found none, ``(d,)``; what lies on a crowd, or fills a row, is neither.
    """

    found: NDArray[np.int64]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]


def overlaps(boxes: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Intersection over union of boxes ``(n, 4)`` with others ``(m, 4)``, by corners: ``(n, m)``.

    >>> overlaps(np.array([[0.0, 0, 2, 2]]), np.array([[0.0, 0, 2, 1], [5, 5, 6, 6]]))
    array([[0.5, 0. ]])
    """
    shared = _shared(boxes, others)
    return shared / np.maximum(_areas(boxes)[:, None] + _areas(others)[None] - shared, 1e-12)


def _shared(boxes: NDArray[np.floating[Any]], others: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    first = np.maximum(boxes[:, None, :2], others[None, :, :2])
    last = np.minimum(boxes[:, None, 2:4], others[None, :, 2:4])
    found: NDArray[np.float64] = np.clip(last - first, 0.0, None).astype(np.float64).prod(axis=2)
    return found


def _areas(boxes: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (boxes[:, 2:4] - boxes[:, :2]).astype(np.float64).prod(axis=1)
    return found


def sight(truth: Truth, boxes: NDArray[np.floating[Any]], sure: float = 0.0) -> Sighted:
    """Match boxes with the objects of their class, the surest first, each object once.

    Args:
        truth: What is in the image.
        boxes: ``(d, 6)``: left, top, right, bottom, score, class from 1; rows of class 0 fill.
        sure: Boxes of a lower score do not count.

    Example:
        >>> there = Truth(np.array([[0.0, 0, 9, 9]]), np.array([1]), np.array([False]))
        >>> seen = sight(there, np.array([[0.0, 0, 9, 8, 0.9, 1], [0, 0, 9, 9, 0.8, 1]]))
        >>> seen.found, seen.wrong
        (array([0]), array([False,  True]))
    """
    found = np.full(len(truth.boxes), -1, dtype=np.int64)
    right = np.zeros(len(boxes), dtype=bool)
    wrong = np.zeros(len(boxes), dtype=bool)
    alike = overlaps(boxes, truth.boxes)
    inside = _shared(boxes, truth.boxes) / np.maximum(_areas(boxes), 1e-12)[:, None]
    for place in np.argsort(-boxes[:, 4], kind="stable").tolist():
        if boxes[place, 5] == 0 or boxes[place, 4] < sure:
            continue
        mine = truth.labels == boxes[place, 5]
        free = np.where(mine & ~truth.crowd & (found < 0), alike[place], 0.0)
        best = int(free.argmax()) if len(free) else -1
        if best >= 0 and free[best] >= OVERLAP:
            found[best], right[place] = place, True
        else:
            wrong[place] = not bool((inside[place] >= OVERLAP)[mine & truth.crowd].any())
    return Sighted(found, right, wrong)


def sure_from(truth: Sequence[Truth], boxes: Sequence[NDArray[np.floating[Any]]]) -> float:
    """The score from which on a network's boxes count as its answer: where their F1 is best.

    Formula: ``F1 = 2 right / (boxes + objects)``, over all images and classes.

    Args:
        truth: What is in each image.
        boxes: Of each image ``(d, 6)``, as for :func:`sight`.

    Returns:
        A score that one of the boxes has; 1 where no box is right.
    """
    seen = [sight(*each) for each in zip(truth, boxes, strict=True)]
    counted = [one.right | one.wrong for one in seen]
    if not any(one.right.any() for one in seen):
        return 1.0
    scores = np.concatenate([each[some, 4] for each, some in zip(boxes, counted, strict=True)])
    right = np.concatenate([one.right[some] for one, some in zip(seen, counted, strict=True)])
    order = np.argsort(-scores, kind="stable")
    objects = sum(int((~each.crowd).sum()) for each in truth)
    values = 2 * np.cumsum(right[order]) / (np.arange(1, len(order) + 1) + objects)
    return float(scores[order][int(values.argmax())])
