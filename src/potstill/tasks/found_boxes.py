"""What is made of found boxes: matched with the truth, joined, compared with another network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from potstill.data.boxes import BoxSet
from potstill.metrics.average_precision import Matches, Truth, match
from potstill.tasks.contract import Answers

__all__ = ["ROWS", "agreement", "in_files", "joined", "matched", "summed_up", "truth_of"]

ROWS = 100
"""Boxes of an image that are answered."""
SURE = 0.5
SIZES = ("small", "medium", "large")


def truth_of(part: BoxSet) -> list[Truth]:
    """What is in each image of a part, in pixels of the files."""
    truth = []
    for image in part.annotated:
        corners = np.array([box.corners for box in image.boxes], dtype=np.float64).reshape(-1, 4)
        labels = np.array([box.label + 1 for box in image.boxes], dtype=np.int64)
        truth.append(Truth(corners, labels, np.array([box.crowd for box in image.boxes], dtype=bool)))
    return truth


def in_files(answers: NDArray[Any], part: BoxSet) -> list[NDArray[Any]]:
    """Answers of each image ``(100, 6)`` in pixels of its file."""
    scales = (np.array([*[part.scale(place)] * 4, 1.0, 1.0]) for place in range(len(part)))
    return [rows / scale for rows, scale in zip(answers, scales, strict=True)]


def matched(answers: NDArray[Any], part: BoxSet, classes: int) -> Matches:
    """Answers ``(N, 100, 6)`` matched with the truth, in pixels of the files."""
    return match(truth_of(part), in_files(answers, part), classes)


def summed_up(matches: Sequence[Matches], class_names: Sequence[str]) -> dict[str, Any]:
    """Means over seeds by overlap, size and class; intervals of mAP and mAP50 by bootstrap over images."""
    overlaps = np.mean([each.by_overlap() for each in matches], axis=0)
    drawn = np.mean([each.bootstrap() for each in matches], axis=0)
    whole, half = np.quantile(drawn, (0.025, 0.975), axis=1).T.tolist()
    return {
        "map50": float(overlaps[0]),
        "map75": float(overlaps[1]),
        "by_size": {name: _mean_of([each.by_size()[name] for each in matches]) for name in SIZES},
        "by_class": dict(
            zip(
                class_names,
                map(_mean_of, zip(*(each.by_class() for each in matches), strict=True)),
                strict=True,
            )
        ),
        "bootstrap": whole,
        "bootstrap50": half,
    }


def joined(answers: Sequence[Answers]) -> Answers:
    """The boxes of all networks, of those on one object the surest, ``(N, 100, 6)``."""
    from torchvision.ops import batched_nms

    made = np.zeros_like(answers[0])
    for place, rows in enumerate(np.concatenate(answers, axis=1)):
        given = torch.from_numpy(rows[rows[:, 5] > 0])
        kept = given[batched_nms(given[:, :4], given[:, 4], given[:, 5], 0.5)][:ROWS].numpy()
        made[place, : len(kept)] = kept
    return made


def agreement(one: Answers, other: Answers) -> float:
    """Share of the boxes that a network is sure of which the other is sure of too, both ways round."""
    from torchvision.ops import box_iou

    shared = total = 0
    for mine, theirs in zip(one, other, strict=True):
        sure = [torch.from_numpy(rows[(rows[:, 5] > 0) & (rows[:, 4] >= SURE)]) for rows in (mine, theirs)]
        same = sure[0][:, None, 5] == sure[1][None, :, 5]
        alike = (box_iou(sure[0][:, :4], sure[1][:, :4]) >= 0.5) & same
        shared += int(alike.any(dim=1).sum()) + int(alike.any(dim=0).sum())
        total += len(sure[0]) + len(sure[1])
    return shared / total if total else 1.0


def _mean_of(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
