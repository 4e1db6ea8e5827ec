"""How well boxes are found: COCO's average precision, and how sure it is.

``pycocotools`` matches boxes with the truth, image by image; what is made of the matches is summed here, so
that it can be summed again without an image (jackknife) or with other weights (bootstrap).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from potstill.errors import UserError

__all__ = ["Matches", "Truth", "match"]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
AREAS = ("all", "small", "medium", "large")
MOST = 100
EPSILON = float(np.spacing(1))


@dataclass(frozen=True)
class Truth:
    """What is in an image: boxes ``(n, 4)`` by corners, classes ``(n,)`` from 1, crowds ``(n,)``."""

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True)
class _Ranked:
    """The found boxes of one class and size over all images, the surest first.

    Attributes:
        image: Which image each is of, ``(D,)``.
        hit: Whether it is right at each threshold, ``(10, D)``.
        counted: Whether it counts, ``(10, D)``: not what lies on a crowd or is of another size.
        objects: Objects to find in each image, ``(N,)``.
        scores: How sure each is, ``(D,)``.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    objects: NDArray[np.int64]
    scores: NDArray[np.float64]

    def precision(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average precision at each threshold ``(10,)``, by the weights of images; NaN without objects."""
        total = float(self.objects @ weights)
        if total <= 0:
            return np.full(len(THRESHOLDS), np.nan)
        mine = weights[self.image]
        right = np.cumsum(self.hit * self.counted * mine, axis=1)
        wrong = np.cumsum(~self.hit * self.counted * mine, axis=1)
        found = np.zeros(len(THRESHOLDS))
        for place, (good, bad) in enumerate(zip(right, wrong, strict=True)):
            curve = _envelope(good / (good + bad + EPSILON))
            at = np.searchsorted(good / total, RECALLS, side="left")
            found[place] = np.append(curve, 0.0)[np.minimum(at, len(curve))].mean()
        return found

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall and precision at an overlap of one half, the surest box first."""
        keep = self.counted[0]
        right, total = np.cumsum(self.hit[0][keep]), max(int(self.objects.sum()), 1)
        return right / total, _envelope(right / np.arange(1, len(right) + 1))


def _envelope(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """The best precision at this recall or a greater one."""
    best: NDArray[np.float64] = np.maximum.accumulate(precision[::-1])[::-1]
    return best


@dataclass(frozen=True)
class Matches:
    """Found boxes matched with the truth; every mean leaves out classes without objects."""

    ranked: Mapping[tuple[int, str], _Ranked]
    images: int
    classes: int

    def _values(
        self, area: str = "all", weights: ArrayLike | None = None, label: int | None = None
    ) -> NDArray[np.float64]:
        """Average precision by class and threshold, ``(C, 10)``; of one class ``(1, 10)``."""
        each = np.ones(self.images) if weights is None else np.asarray(weights, dtype=np.float64)
        labels = range(1, self.classes + 1) if label is None else [label]
        return np.stack([self.ranked[one, area].precision(each) for one in labels])

    def mean(self, weights: ArrayLike | None = None, label: int | None = None) -> float:
        """The mean over overlaps from 0.5 to 0.95, of all classes or one; 0 without objects."""
        return _mean(self._values(weights=weights, label=label))

    def by_overlap(self) -> tuple[float, float]:
        """The mean at an overlap of 0.5, and of 0.75."""
        values = self._values()
        return _mean(values[:, 0]), _mean(values[:, 5])

    def by_size(self) -> dict[str, float | None]:
        """Mean of small, medium and large objects, in pixels of the files; ``None`` without any."""
        found = {area: self._values(area) for area in AREAS[1:]}
        return {area: None if np.isnan(each).all() else _mean(each) for area, each in found.items()}

    def by_class(self) -> list[float | None]:
        """Mean of each class; ``None`` without an object."""
        return [None if np.isnan(row).all() else _mean(row) for row in self._values()]

    def jackknife(self, label: int | None = None) -> NDArray[np.float64]:
        """Pseudo-values ``(N,)``: what each image adds to mAP, or to the average precision of one class.

        Formula: ``N * mAP - (N - 1) * mAP without the image``. Their mean is mAP less its bias, their
        variance over N that of mAP.

        Reference:
            Tukey, "Bias and confidence in not quite large samples", 1958
        """
        count, whole = self.images, self.mean(label=label)
        if count < 2:
            return np.full(count, whole)
        weights = 1.0 - np.eye(count)
        without = np.array([self.mean(row, label) for row in weights])
        return count * whole - (count - 1) * without

    def bootstrap(self, samples: int = 200, seed: int = 0) -> NDArray[np.float64]:
        """mAP, and the mean at an overlap of 0.5, of data sets drawn from the images with replacement.

        Returns:
            ``(2, samples)``.
        """
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(self.images, np.full(self.images, 1 / self.images), size=samples)
        values = [self._values(weights=row) for row in draws]
        return np.array([[_mean(each) for each in values], [_mean(each[:, 0]) for each in values]])

    def curve(self, label: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Recall and precision of a class (from 1) at an overlap of one half."""
        return self.ranked[label, "all"].curve()


def _mean(values: NDArray[np.float64]) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else 0.0


def match(truth: Sequence[Truth], found: Sequence[NDArray[np.floating[Any]]], classes: int) -> Matches:
    """Match found boxes with the truth as COCO does.

    Args:
        truth: What is in each image.
        found: Of each image ``(n, 6)``: left, top, right, bottom, score, class from 1; rows of class 0 fill.
        classes: Number of classes.

    Returns:
        The matches, of which everything else is made.

    Example:
        >>> box = np.array([[0.0, 0.0, 9.0, 9.0]])
        >>> there = Truth(box, np.array([1]), np.array([False]))
        >>> round(match([there], [np.array([[0.0, 0.0, 9.0, 9.0, 0.7, 1.0]])], 1).mean(), 6)
        1.0
    """
    evaluated = _evaluated(truth, found, classes)
    count = len(truth)
    ranked = {}
    for place, area in enumerate(AREAS):
        for label in range(1, classes + 1):
            begin = ((label - 1) * len(AREAS) + place) * count
            ranked[label, area] = _ranked(evaluated[begin : begin + count])
    return Matches(ranked, count, classes)


def _evaluated(
    truth: Sequence[Truth], found: Sequence[NDArray[np.floating[Any]]], classes: int
) -> list[dict[str, Any] | None]:
    """What pycocotools says of each class, size and image, in this order."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise UserError("task", "detection needs pycocotools: pip install 'potstill[detection]'") from error
    images = [{"id": number + 1} for number in range(len(truth))]
    true, answers = COCO(), COCO()
    categories = [{"id": label} for label in range(1, classes + 1)]
    notes = [
        {**_row(number, box, int(label)), "iscrowd": int(crowd)}
        for number, each in enumerate(truth)
        for box, label, crowd in zip(each.boxes, each.labels, each.crowd, strict=True)
    ]
    rows = [
        {**_row(number, row[:4], int(row[5])), "score": float(row[4]), "iscrowd": 0}
        for number, each in enumerate(found)
        for row in np.asarray(each, dtype=np.float64)
        if row[5] > 0
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        for made, listed in ((true, notes), (answers, rows)):
            numbered = [{"id": place + 1, **note} for place, note in enumerate(listed)]
            made.dataset = {"images": images, "annotations": numbered, "categories": categories}
            made.createIndex()
        judge = COCOeval(true, answers, "bbox")
        judge.evaluate()
    evaluated: list[dict[str, Any] | None] = judge.evalImgs
    return evaluated


def _row(number: int, box: NDArray[Any], label: int) -> dict[str, Any]:
    left, top, right, bottom = (float(side) for side in box)
    width, height = right - left, bottom - top
    return {
        "image_id": number + 1,
        "category_id": label,
        "bbox": [left, top, width, height],
        "area": width * height,
    }


def _ranked(images: Sequence[dict[str, Any] | None]) -> _Ranked:
    objects = np.array(
        [0 if each is None else int((~each["gtIgnore"].astype(bool)).sum()) for each in images]
    )
    found = [(place, each) for place, each in enumerate(images) if each is not None and len(each["dtScores"])]
    if not found:
        nothing = np.zeros((len(THRESHOLDS), 0), dtype=bool)
        return _Ranked(np.zeros(0, np.int64), nothing, nothing, objects, np.zeros(0))
    scores = np.concatenate([np.asarray(each["dtScores"][:MOST], dtype=np.float64) for _, each in found])
    order = np.argsort(-scores, kind="mergesort")
    image = np.concatenate([np.full(len(each["dtScores"][:MOST]), place) for place, each in found])
    hit = np.concatenate([each["dtMatches"][:, :MOST] > 0 for _, each in found], axis=1)
    ignored = np.concatenate([each["dtIgnore"][:, :MOST].astype(bool) for _, each in found], axis=1)
    return _Ranked(image[order], hit[:, order], ~ignored[:, order], objects, scores[order])
