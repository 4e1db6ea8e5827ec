"""What was found of each class: counts, average precision with intervals, precision over recall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.metrics.average_precision import RECALLS, Matches, Truth
from potstill.metrics.sightings import Sighted
from potstill.metrics.verdict import compare
from potstill.report.content import ClassDifference
from potstill.report.scenes import ClassCount, ClassCurve

__all__ = ["Found", "Seeing", "class_counts", "class_curves", "class_differences", "gains"]

Found = NDArray[Any]
"""Boxes of an arm, ``(S, N, 100, 6)`` in pixels of the files: one slice a seed."""


@dataclass(frozen=True)
class Seeing:
    """An arm's boxes, and what they found by seed and image."""

    boxes: Found
    sure: float
    seen: list[list[Sighted]]


def class_differences(
    student: Sequence[Matches], control: Sequence[Matches], class_names: Sequence[str]
) -> tuple[ClassDifference, ...]:
    """Average precision of student and control on each class.

    Intervals are as wide as the jackknife pseudo-values of the images say, around the plain difference.
    """
    rows = []
    for label, name in enumerate(class_names, start=1):
        objects = student[0].ranked[label, "all"].objects
        if np.count_nonzero(objects) < 2:
            continue
        both = [np.stack([one.jackknife(label) for one in arm]) for arm in (student, control)]
        means = [float(np.mean([one.by_class()[label - 1] for one in arm])) for arm in (student, control)]
        verdict, gain = compare(*both), means[0] - means[1]
        low, high = (gain + end - verdict.gain for end in verdict.interval)
        rows.append(
            ClassDifference(
                name=name,
                student=means[0],
                control=means[1],
                interval=(low, high),
                samples=int(np.count_nonzero(objects)),
            )
        )
    return tuple(rows)


def gains(truth: Sequence[Truth], arms: Mapping[str, Seeing], seed: int) -> list[NDArray[np.int64]]:
    """For each object 1 where the student alone found it, -1 where the control (or the teacher) did."""
    other = arms.get("control", arms.get("teacher"))
    if other is None:
        return [np.zeros(len(each.boxes), dtype=np.int64) for each in truth]
    theirs = other.seen[min(seed, len(other.seen) - 1)]
    pairs = zip(arms["student"].seen[seed], theirs, strict=True)
    return [(mine.found >= 0).astype(np.int64) - (his.found >= 0) for mine, his in pairs]


def class_counts(
    truth: Sequence[Truth], found: Mapping[str, Seeing], class_names: Sequence[str]
) -> Iterator[ClassCount]:
    """How many objects of each class the arms found, and how many boxes were of none."""
    labels = np.concatenate([each.labels * ~each.crowd for each in truth])
    sides = None
    if "control" in found:
        seeds = range(len(found["student"].seen))
        sides = np.stack([np.concatenate(gains(truth, found, seed)) for seed in seeds])
    hits = {
        arm: np.mean([np.concatenate([each.found >= 0 for each in seed]) for seed in one.seen], axis=0)
        for arm, one in found.items()
    }
    for label, name in enumerate(class_names, start=1):
        mine = labels == label
        if not mine.any():
            continue
        yield ClassCount(
            name=name,
            objects=int(mine.sum()),
            found={arm: float(each[mine].sum()) for arm, each in hits.items()},
            wrong={arm: _wrong(one, label) for arm, one in found.items()},
            gained=None if sides is None else float((sides[:, mine] > 0).sum(axis=1).mean()),
            lost=None if sides is None else float((sides[:, mine] < 0).sum(axis=1).mean()),
        )


def _wrong(arm: Seeing, label: int) -> float:
    """Boxes of a class that are of no object, mean over seeds."""
    total = sum(
        int((rows[each.wrong, 5] == label).sum())
        for boxes, seen in zip(arm.boxes, arm.seen, strict=True)
        for rows, each in zip(boxes, seen, strict=True)
    )
    return total / len(arm.seen)


def class_curves(
    matches: Mapping[str, Sequence[Matches]], class_names: Sequence[str]
) -> Iterator[ClassCurve]:
    """Precision at an overlap of one half, at each recall."""
    for label, name in enumerate(class_names, start=1):
        objects = int(next(iter(matches.values()))[0].ranked[label, "all"].objects.sum())
        if objects == 0:
            continue
        rows = {}
        for arm, some in matches.items():
            each = np.stack([_at_recalls(*one.curve(label)) for one in some]).round(4)
            low, mean, high = each.min(axis=0), each.mean(axis=0), each.max(axis=0)
            rows[arm] = (tuple(low.tolist()), tuple(mean.tolist()), tuple(high.tolist()))
        yield ClassCurve(name=name, objects=objects, precision=rows)


def _at_recalls(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> NDArray[np.float64]:
    at = np.searchsorted(recall, RECALLS, side="left")
    return np.append(precision, 0.0)[np.minimum(at, len(precision))]
