"""From boxes to what the report shows: scenes, what only one arm found, counts and curves by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from potstill.data.boxes import BoxSet
from potstill.metrics.average_precision import Matches, Truth
from potstill.metrics.sightings import Sighted, sight, sure_from
from potstill.report.scenes import Detected, Glimpse, Scene, ShownBox, photograph
from potstill.tasks.box_figures import Found, Seeing, class_counts, class_curves, gains

__all__ = ["detected"]

GAINED, LOST = 8, 4
"""Objects that are cut out and shown."""
AROUND = 0.6
"""How much of an object's sides is shown around it."""
GLIMPSE = 112


def detected(
    truth: Sequence[Truth],
    found: Mapping[str, Found],
    matches: Mapping[str, Sequence[Matches]],
    part: BoxSet,
) -> Detected:
    """Everything that the report tells of boxes.

    Args:
        truth: What is in each image, in pixels of the files.
        found: By arm its boxes; the teacher has one seed, and it and the control may be absent.
        matches: By arm and seed the same, matched with the truth.
        part: The test part.
    """
    arms: dict[str, Seeing] = {}
    for arm, boxes in found.items():
        sure = float(np.mean([sure_from(truth, each) for each in boxes]))
        arms[arm] = Seeing(boxes, sure, _seen(truth, boxes, sure))
    return Detected(
        scenes=tuple(_scene(part, truth[at], at, why, arms) for at, why in _chosen(truth, arms)),
        glimpses=tuple(_glimpses(part, truth, arms)),
        counts=tuple(class_counts(truth, arms, part.class_names)),
        curves=tuple(class_curves(matches, part.class_names)),
        sure={arm: one.sure for arm, one in arms.items()},
    )


def _seen(truth: Sequence[Truth], boxes: Found, sure: float) -> list[list[Sighted]]:
    return [[sight(*pair, sure) for pair in zip(truth, each, strict=True)] for each in boxes]


# Which images ---------------------------------------------------------------------------------------


def _chosen(truth: Sequence[Truth], arms: Mapping[str, Seeing]) -> list[tuple[int, str]]:
    """Images of the first seed, by a fixed rule: greatest gain, greatest loss, most errors, none."""
    gained = gains(truth, arms, 0)
    mine = arms["student"].seen[0]
    net = np.array([int(each.sum()) for each in gained])
    wrong = np.array([int(one.wrong.sum()) + int((one.found < 0).sum()) for one in mine])
    objects = np.array([len(each.boxes) for each in truth])
    other = "control" if "control" in arms else "teacher"
    kinds = [
        (f"The student finds most that the {other} misses", net, 3),
        (f"The {other} finds most that the student misses", -net, 1),
        ("The student errs most", wrong, 1),
        ("The student sees all of many", np.where(wrong == 0, objects, 0), 1),
    ]
    chosen: list[tuple[int, str]] = []
    for why, values, count in kinds:
        taken = {at for at, _ in chosen}
        order = [at for at in np.argsort(-values, kind="stable").tolist() if at not in taken]
        chosen += [(at, why) for at in order[:count] if values[at] > 0]
    return chosen


# Pictures -------------------------------------------------------------------------------------------


def _pixels(part: BoxSet, at: int) -> tuple[NDArray[np.uint8], float]:
    """An image ``(3, H, W)`` without the black beside it, and its pixels for one of the file's."""
    scale, (height, width) = part.scale(at), part.file_size(at)
    image: NDArray[np.uint8] = part.__getitems__([at])[0][0].numpy()
    return image[:, : max(round(height * scale), 1), : max(round(width * scale), 1)], scale


def _scene(part: BoxSet, truth: Truth, at: int, why: str, arms: Mapping[str, Seeing]) -> Scene:
    pixels, scale = _pixels(part, at)
    image, size = photograph(pixels)
    scale *= size[0] / pixels.shape[2]
    real = np.flatnonzero(~truth.crowd)
    boxes = {"truth": tuple(_box(truth.boxes[at] * scale, truth.labels[at], "true") for at in real)}
    control = arms["control"].seen[0][at].found if "control" in arms else None
    for arm, one in arms.items():
        seen, rows = one.seen[0][at], one.boxes[0][at]
        shown = [
            _box(rows[row, :4] * scale, rows[row, 5], "wrong", rows[row, 4]) for row in _places(seen.wrong)
        ]
        for true in real:
            row = int(seen.found[true])
            if row < 0:
                shown.append(_box(truth.boxes[true] * scale, truth.labels[true], "missed"))
                continue
            gained = arm == "student" and control is not None and control[true] < 0
            kind = "gained" if gained else "right"
            shown.append(_box(rows[row, :4] * scale, rows[row, 5], kind, rows[row, 4]))
        boxes[arm] = tuple(shown)
    return Scene(image=image, size=size, index=at, why=why, boxes=boxes)


def _places(mask: NDArray[np.bool_]) -> list[int]:
    found: list[int] = np.flatnonzero(mask).tolist()
    return found


def _box(corners: NDArray[Any], label: float, kind: str, score: float | None = None) -> ShownBox:
    left, top, right, bottom = (round(float(side), 1) for side in corners)
    sure = None if score is None else round(float(score), 3)
    return ShownBox(corners=(left, top, right, bottom), label=int(label) - 1, kind=kind, score=sure)


def _glimpses(part: BoxSet, truth: Sequence[Truth], arms: Mapping[str, Seeing]) -> Iterator[Glimpse]:
    """Objects that one of control and student alone found, classes in turn, the surest of each first."""
    if "control" not in arms:
        return
    sides = gains(truth, arms, 0)
    for sign, arm, count in ((1, "student", GAINED), (-1, "control", LOST)):
        one, ranked = arms[arm], list[tuple[int, float, int, int]]()
        for at, side in enumerate(sides):
            for true in _places((side == sign) & ~truth[at].crowd):
                score = float(one.boxes[0][at][one.seen[0][at].found[true], 4])
                ranked.append((int(truth[at].labels[true]), score, at, true))
        ranked.sort(key=lambda row: (-row[1], row[2], row[3]))
        turns = [sum(row[0] == other[0] for other in ranked[:place]) for place, row in enumerate(ranked)]
        for place in sorted(range(len(ranked)), key=lambda place: (turns[place], ranked[place][0]))[:count]:
            label, score, at, true = ranked[place]
            image = _cut_out(part, at, truth[at].boxes[true])
            yield Glimpse(image=image, label=label - 1, score=score, gained=sign > 0)


def _cut_out(part: BoxSet, at: int, corners: NDArray[np.float64]) -> str:
    """A square around an object."""
    pixels, scale = _pixels(part, at)
    left, top, right, bottom = corners * scale
    half = max(right - left, bottom - top) * (0.5 + AROUND)
    across, down = (left + right) / 2, (top + bottom) / 2
    rows = slice(max(int(down - half), 0), int(down + half) + 1)
    columns = slice(max(int(across - half), 0), int(across + half) + 1)
    return photograph(pixels[:, rows, columns], GLIMPSE)[0]
