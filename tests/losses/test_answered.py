"""Boxes of teachers as labels: torchvision's formula, a loop, and numbers by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.batch import Signals
from potstill.errors import UserError
from potstill.losses import response, teacher_boxes
from potstill.matching.answered import of_answers, of_corners
from potstill.matching.terms import Term, TermConfig


def boxes_of(seed: int, count: int = 8) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    first = torch.rand(2, count, 2, generator=random, dtype=torch.float64) * 0.6
    sides = 0.05 + 0.3 * torch.rand(2, count, 2, generator=random, dtype=torch.float64)
    return torch.cat([first, first + sides], dim=-1)


def test_teacher_boxes_is_torchvisions_giou() -> None:
    ops = pytest.importorskip("torchvision.ops")
    ours, theirs = boxes_of(0), boxes_of(1)
    found = teacher_boxes(ours, theirs)
    torch.testing.assert_close(found, ops.generalized_box_iou_loss(ours, theirs), atol=1e-6, rtol=1e-6)
    assert not teacher_boxes(ours, ours).abs().max() > 1e-12


def test_teacher_boxes_golden_numbers() -> None:
    """Side by side with a gap as wide as both: IoU 0, hull 3, union 2. By sides: two are off by 2."""
    ours, theirs = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[2.0, 0.0, 3.0, 1.0]])
    assert float(teacher_boxes(ours, theirs)) == pytest.approx(1 + 1 / 3)
    assert float(teacher_boxes(ours, theirs, form="l1")) == pytest.approx(4.0)


def test_boxes_that_the_teacher_is_not_sure_of_pull_nowhere() -> None:
    ours = boxes_of(0, 2)[0].requires_grad_()
    found = teacher_boxes(ours, boxes_of(1, 2)[0], confident=0.5, sureness=torch.tensor([0.49, 0.5]))
    found.sum().backward()
    assert found[0] == 0.0
    assert ours.grad is not None
    assert not ours.grad[0].any()
    assert ours.grad[1].any()


@pytest.mark.parametrize("exclusive", [True, False])
def test_response_is_its_oracle(exclusive: bool) -> None:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 3, generator=random, dtype=torch.float64)
    given = torch.randn(6, 3, generator=random, dtype=torch.float64).softmax(dim=-1)
    distance = torch.rand(6, generator=random, dtype=torch.float64)
    found = response(logits, given, exclusive=exclusive, boxes=0.5, distance=distance)
    for row in range(6):
        z, p = logits[row], given[row]
        wanted = 0.5 * float(p[1:].max() * distance[row])
        if exclusive:
            wanted -= sum(float(p[c] * torch.log(z.exp()[c] / z.exp().sum())) for c in range(3))
        else:
            for c in range(3):
                q, y = float(torch.sigmoid(z[c])), 0.0 if c == 0 else float(p[c])
                cross = -(y * torch.log(torch.tensor(q)) + (1 - y) * torch.log(torch.tensor(1 - q)))
                wanted += (q - y) ** 2 * float(cross)
        assert float(found[row]) == pytest.approx(wanted, rel=1e-5)


def signals(**taps: Any) -> Signals:
    return Signals(torch.zeros(1), {"size": torch.tensor([100.0, 50.0]), **taps})


ANCHORS = torch.tensor([[[0.0, 0, 20, 20], [50, 10, 70, 30], [80, 30, 100, 50]]])


def test_regions_that_a_final_box_overlaps_get_its_class_and_score() -> None:
    """The teacher saw the image at twice the size; its box lies on the second region."""
    logits = torch.zeros(1, 3, 3)
    taps = {"box.classes": logits, "box.anchors": ANCHORS, "box.corners": ANCHORS}
    student = signals(**taps, **{"box.labels": torch.tensor([[0, -1, -1]])})
    answers = torch.tensor([[[100.0, 20, 140, 60, 0.75, 2], [0, 0, 0, 0, 0, 0]]])
    teacher = Signals(torch.zeros(1), {"size": torch.tensor([200.0, 100.0]), "answers": answers})
    term = Term("response", TermConfig(loss="response"))
    values, where = of_answers(term, "box", student, teacher)
    assert where.tolist() == [[True, True, False]]
    even = float(torch.tensor(3.0).log())
    assert values[0].tolist() == pytest.approx([even, even, 0.0])
    logits[0, 1, 2] = 9.0
    surer, _ = of_answers(term, "box", student, teacher)
    assert float(surer[0, 1]) == pytest.approx(0.25 * 9.0, abs=0.01)
    off = {**student.taps, "box.corners": ANCHORS + torch.tensor([0.0, 0, 20, 0])}  # twice as wide
    farther, _ = of_answers(term, "box", Signals(student.output, off), teacher)
    assert float(farther[0, 1] - surer[0, 1]) == pytest.approx(0.75 * 0.5)
    with pytest.raises(UserError, match=r"distill\.response: needs a detector"):
        of_answers(term, "box", student, signals())


def test_boxes_of_the_class_that_the_teacher_sees_are_compared() -> None:
    """Boxes for each class: the student's of class 2 is right, that of class 1 is not."""
    corners = ANCHORS[:, :, None].repeat(1, 1, 3, 1)
    off = corners.clone()
    off[:, :, 1] += 5.0
    labels = torch.tensor([[1, 0, -1]])
    classes = torch.tensor([[[0.0, 0, 9], [0, 9, 0], [0, 0, 9]]])
    student = signals(**{"box.corners": off, "box.labels": labels})
    teacher = signals(**{"box.corners": corners, "box.classes": classes})
    values, where = of_corners(
        Term("near", TermConfig(loss="teacher_boxes")), "box", student, teacher, labels
    )
    assert where.tolist() == [[True, True, False]]
    assert float(values[0, 0]) == pytest.approx(0.0, abs=1e-6)
    assert float(values[0, 1]) > 0.1
