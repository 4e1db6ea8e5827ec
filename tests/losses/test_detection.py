"""Losses of detectors: slow oracles that loop over regions, golden numbers, and cases worked by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.losses import bounded_regression, region_hint, weighted_classes, weighted_scores
from potstill.losses.regions import inside_boxes, near_boxes, region_weights


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax(row: list[float], temperature: float) -> list[float]:
    raised = [math.exp(each / temperature) for each in row]
    return [each / sum(raised) for each in raised]


def classes_oracle(
    student: list[float], teacher: list[float], label: int, hard: float, background: float, temperature: float
) -> float:
    ours, theirs = softmax(student, temperature), softmax(teacher, temperature)
    soft = 0.0
    for place in range(len(student)):
        weight = background if place == 0 else 1.0
        soft += -weight * theirs[place] * math.log(ours[place])
    return hard * -math.log(softmax(student, 1.0)[label]) + (1 - hard) * temperature**2 * soft


@pytest.mark.parametrize(
    ("hard", "background", "temperature"),
    [(0.5, 1.5, 1.0), (0.0, 1.5, 2.0), (1.0, 3.0, 1.0), (0.3, 0.0, 1.0)],
)
def test_weighted_classes_is_its_oracle(hard: float, background: float, temperature: float) -> None:
    student, teacher = normal(3, 5, 4), normal(3, 5, 4, seed=1)
    labels = torch.arange(15).view(3, 5) % 4
    options = {"hard": hard, "background": background, "temperature": temperature}
    found = weighted_classes(student, teacher, labels, **options)
    for image in range(3):
        for row in range(5):
            wanted = classes_oracle(
                student[image, row].tolist(), teacher[image, row].tolist(), int(labels[image, row]), **options
            )
            assert float(found[image, row]) == pytest.approx(wanted)


def test_weighted_classes_golden_number() -> None:
    """Even student, teacher (3/4, 1/4), label 1: half of ln 2, and half of (1.5 * 3/4 + 1/4) ln 2."""
    found = weighted_classes(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), torch.tensor([1]))
    assert float(found) == pytest.approx(0.5 * math.log(2) * (1 + 1.375))


def test_background_alone_weighs_half_as_much_again() -> None:
    """Even student, a teacher sure of background, label 0: half of ln 2, and half of 1.5 ln 2."""
    found = weighted_classes(torch.zeros(1, 2), torch.tensor([[40.0, 0.0]]), torch.tensor([0]))
    assert float(found) == pytest.approx(1.25 * math.log(2))


def scores_oracle(student: list[float], teacher: list[float], label: int, hard: float, focus: float) -> float:
    total = 0.0
    for place, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
        q, t = 1 / (1 + math.exp(-ours)), 1 / (1 + math.exp(-theirs))
        y = 1.0 if place == label and label > 0 else 0.0
        for share, wanted in ((1 - hard, t), (hard, y)):
            entropy = -(wanted * math.log(q) + (1 - wanted) * math.log(1 - q))
            total += share * abs(q - wanted) ** focus * entropy
    return total


@pytest.mark.parametrize(("hard", "focus"), [(0.0, 2.0), (0.5, 2.0), (1.0, 1.0), (0.5, 0.0)])
def test_weighted_scores_is_its_oracle(hard: float, focus: float) -> None:
    student, teacher = normal(2, 6, 4), normal(2, 6, 4, seed=1)
    labels = torch.arange(12).view(2, 6) % 4
    found = weighted_scores(student, teacher, labels, hard=hard, focus=focus)
    for image in range(2):
        for row in range(6):
            rows = student[image, row].tolist(), teacher[image, row].tolist()
            wanted = scores_oracle(*rows, int(labels[image, row]), hard, focus)
            assert float(found[image, row]) == pytest.approx(wanted)


def test_weighted_scores_golden_number() -> None:
    """A score of 1/2 where the teacher says 3/4: (1/4)^2 ln 2."""
    found = weighted_scores(torch.zeros(1, 1), torch.tensor([[math.log(3)]]), torch.tensor([0]))
    assert float(found) == pytest.approx(math.log(2) / 16)


def bounded_oracle(student: list[float], teacher: list[float], true: list[float], margin: float) -> float:
    ours = sum((a - b) ** 2 for a, b in zip(student, true, strict=True))
    theirs = sum((a - b) ** 2 for a, b in zip(teacher, true, strict=True))
    return ours if ours + margin > theirs else 0.0


def test_bounded_regression_is_its_oracle() -> None:
    student, teacher, true = normal(4, 7, 4), normal(4, 7, 4, seed=1), normal(4, 7, 4, seed=2)
    found = bounded_regression(student, teacher, true, margin=0.5)
    rows = zip(found.flatten(), student.flatten(0, 1), teacher.flatten(0, 1), true.flatten(0, 1), strict=True)
    zeros = 0
    for value, *given in rows:
        wanted = bounded_oracle(*(each.tolist() for each in given), 0.5)
        zeros += wanted == 0.0
        assert float(value) == pytest.approx(wanted)
    assert 0 < zeros < 28


@pytest.mark.parametrize(
    ("student", "value", "pulls"),
    [
        (0.3, 0.09, True),  # worse than the teacher
        (0.2, 0.04, True),  # as good
        (0.19, 0.0361, True),  # better by 0.0039, less than the margin of 0.01
        (0.1, 0.0, False),  # better by 0.03
        (0.0, 0.0, False),  # exact
    ],
)
def test_the_bound_by_hand_where_the_teacher_is_off_by_a_fifth(
    student: float, value: float, pulls: bool
) -> None:
    """One box, off along one side; a golden number a case."""
    ours = torch.tensor([[student, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    theirs = torch.tensor([[0.2, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = bounded_regression(ours, theirs, torch.zeros(1, 4, dtype=torch.float64))
    found.sum().backward()
    assert float(found.detach()) == pytest.approx(value)
    assert ours.grad is not None
    assert bool((ours.grad != 0).any()) == pulls


def test_no_region_and_no_true_box_are_0_without_a_gradient() -> None:
    empty = torch.zeros(2, 0, 4, requires_grad=True)
    assert bounded_regression(empty, empty, empty).shape == (2, 0)
    rows = normal(1, 3, 4).requires_grad_()
    nothing = bounded_regression(
        rows, rows.detach() + 1, rows.detach() + 5, where=torch.zeros(1, 3, dtype=torch.bool)
    )
    nothing.sum().backward()
    assert rows.grad is not None
    assert not nothing.any()
    assert not rows.grad.any()


BOXES = torch.tensor(
    [[[0.25, 0.0, 0.7, 0.5, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0, 0.0]] * 2]
)


def weights_oracle(image: int, teacher: Tensor, regions: str, background: float) -> list[list[float]]:
    _, height, width = teacher[image].shape
    inside = [[False] * width for _ in range(height)]
    for left, top, right, bottom, label in BOXES[image].tolist():
        for y in range(height):
            for x in range(width):
                touches = (
                    x + 1 > left * width
                    and x < right * width
                    and y + 1 > top * height
                    and y < bottom * height
                )
                inside[y][x] = inside[y][x] or (touches and label > 0)
    front = sum(map(sum, inside))
    energy = [[float((teacher[image, :, y, x] ** 2).mean()) for x in range(width)] for y in range(height)]
    total = sum(map(sum, energy))
    found = [[0.0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            if regions == "none":
                found[y][x] = 1 / (height * width)
            elif regions == "attention":
                found[y][x] = energy[y][x] / total
            elif inside[y][x]:
                found[y][x] = (1.0 if regions == "boxes" else 1 - background) / front
            elif regions == "split":
                found[y][x] = background / (height * width - front)
    return found


@pytest.mark.parametrize("regions", ["none", "boxes", "split", "attention"])
def test_region_hint_is_its_oracle(regions: Any) -> None:
    """The second image has no box at all."""
    student, teacher = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    found = region_hint(student, teacher, regions=regions, background=0.3, boxes=BOXES)
    for image in range(2):
        weights = weights_oracle(image, teacher, regions, 0.3)
        wanted = 0.0
        for y in range(4):
            for x in range(5):
                off = student[image, :, y, x] - teacher[image, :, y, x]
                wanted += weights[y][x] * float((off**2).mean())
        assert float(found[image]) == pytest.approx(wanted)


def test_region_hint_golden_number() -> None:
    """Off by 2 at the one place inside, by 1 at the three outside: 0.7 * 4 + 0.3 * 1."""
    student = torch.tensor([[[[2.0, 1.0], [1.0, 1.0]]]])
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5, 1.0]]])
    found = region_hint(student, torch.zeros(1, 1, 2, 2), regions="split", boxes=boxes)
    assert float(found) == pytest.approx(3.1)


def test_nothing_outside_true_boxes_gets_a_gradient() -> None:
    student = normal(2, 3, 4, 5).requires_grad_()
    region_hint(student, normal(2, 3, 4, 5, seed=1), regions="boxes", boxes=BOXES).sum().backward()
    assert student.grad is not None
    inside = inside_boxes(BOXES, 4, 5)
    assert torch.equal((student.grad != 0).any(dim=1), inside)
    assert 0 < int(inside[0].sum()) < 20
    assert not inside[1].any()


def test_places_near_objects_are_those_of_anchors_of_their_size() -> None:
    """A loop over boxes and places with torchvision's overlap; boxes that a grid cuts anywhere."""
    ops = pytest.importorskip("torchvision.ops")
    corners = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0)) * 0.6
    size = 0.03 + 0.35 * torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(1))
    boxes = torch.cat(
        [corners, corners + size, torch.tensor([[1.0, 2.0, 1.0], [1.0, 0.0, 1.0]])[..., None]], 2
    )
    found = near_boxes(boxes, 7, 9)
    for image in range(2):
        wanted = torch.zeros(7, 9, dtype=torch.bool)
        for left, top, right, bottom, label in boxes[image].tolist():
            if label == 0:
                continue
            anchors = [
                [(x + 0.5) / 9 - (right - left) / 2, (y + 0.5) / 7 - (bottom - top) / 2]
                for y in range(7)
                for x in range(9)
            ]
            each = torch.tensor([[a, b, a + right - left, b + bottom - top] for a, b in anchors])
            overlap = ops.box_iou(each, torch.tensor([[left, top, right, bottom]])).view(7, 9)
            wanted |= overlap > 0.5 * overlap.max()
            wanted[int((top + bottom) / 2 * 7), int((left + right) / 2 * 9)] = True
        assert torch.equal(found[image], wanted)
    assert not near_boxes(BOXES, 4, 5)[1].any()


def test_a_small_object_has_a_place_of_its_own() -> None:
    """Smaller than a place and at its edge: it touches two, and near is the one that holds its middle."""
    boxes = torch.tensor([[[0.35, 0.3, 0.52, 0.7, 1.0]]])
    assert inside_boxes(boxes, 1, 2).tolist() == [[[True, True]]]
    assert near_boxes(boxes, 1, 2).tolist() == [[[True, False]]]


def test_weights_of_an_image_sum_to_one() -> None:
    teacher = normal(1, 3, 4, 5)
    for regions in ("none", "boxes", "near", "split", "attention"):
        weights = region_weights(BOXES[:1], teacher, regions, 0.3)  # type: ignore[arg-type]
        assert float(weights.sum()) == pytest.approx(1.0)


def test_boxes_that_are_needed_and_missing_are_named() -> None:
    with pytest.raises(ValueError, match="confident needs boxes"):
        region_hint(normal(1, 1, 2, 2), normal(1, 1, 2, 2), regions="confident")
    with pytest.raises(ValueError, match="one shape"):
        bounded_regression(normal(1, 2, 4), normal(1, 3, 4), normal(1, 2, 4))
