"""Teachers whose anchors are others: matched by place and size, boxes told as the student tells them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.matching.answered import of_answers
from potstill.matching.detected import of_heads
from potstill.matching.same_regions import deltas_of, same_regions
from potstill.matching.terms import Term, TermConfig
from potstill.models import detectors
from potstill.models.detector import Detector
from potstill.teachers import Frozen
from tests.shapes import tiny

pytest.importorskip("torchvision")
BOXES = torch.tensor([[[5.0, 5, 30, 34], [30, 10, 60, 50]], [[8, 20, 40, 44], [0, 0, 0, 0]]])
LABELS = torch.tensor([[1, 2], [2, 0]])


def term_of(loss: str, **options: Any) -> Term:
    return Term(loss, TermConfig(loss=loss, options=options))


def signals(anchors: Tensor, size: float, **taps: Tensor) -> Signals:
    named = {f"box.{name}": tensor for name, tensor in taps.items()}
    return Signals(torch.zeros(1), {"size": torch.tensor([size, size]), "box.anchors": anchors, **named})


def made(kind: str, seed: int = 0, **more: Any) -> Detector:
    torch.manual_seed(seed)
    detector: Detector = getattr(detectors, kind)(2, **tiny(kind, **more)["arguments"])
    return detector.eval()


def taught(student: Detector, teacher: Detector, side: int = 64) -> tuple[Signals, Signals]:
    random = torch.Generator().manual_seed(1)
    images, theirs = (torch.randn(2, 3, each, each, generator=random) for each in (64, side))
    ours = student(images, BOXES, LABELS)
    assert isinstance(ours, Signals)
    inputs = {"images": theirs, "proposals": torch.zeros(2, 0, 4)}
    batch = Batch({"student": {"images": images}, "teacher": inputs}, None, None, torch.arange(2))
    return ours, Frozen(teacher)(batch, ours)


def test_deltas_are_torchvisions() -> None:
    from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

    random = torch.Generator().manual_seed(0)
    first = torch.rand(2, 7, 2, generator=random) * 30
    anchors = torch.cat([first, first + 5 + 20 * torch.rand(2, 7, 2, generator=random)], dim=2)
    corners = anchors + torch.rand(2, 7, 4, generator=random)
    weights = (10.0, 10.0, 5.0, 5.0)
    coder = BoxCoder(weights)
    wanted = torch.stack([coder.encode_single(*pair) for pair in zip(corners, anchors, strict=True)])
    torch.testing.assert_close(deltas_of(corners, anchors, torch.tensor(weights)), wanted)
    torch.testing.assert_close(deltas_of(corners, anchors, None), BoxLinearCoder().encode(anchors, corners))
    many = torch.stack([corners, corners + 1], dim=2)
    torch.testing.assert_close(
        deltas_of(many, anchors, None)[:, :, 0], BoxLinearCoder().encode(anchors, corners)
    )


def test_anchors_stand_for_the_nearest_of_like_size() -> None:
    """The teacher saw twice the size, has its anchors in another order, one of its own, and lacks one."""
    anchors = torch.tensor([[[0.0, 0, 20, 20], [0, 0, 60, 60], [50, 50, 70, 70], [80, 0, 90, 10]]])
    theirs = 2 * torch.tensor([[[52.0, 50, 72, 70], [0, 0, 22, 20], [1, 1, 61, 60], [0, 80, 20, 100]]])
    scores = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    student = signals(anchors, 100)
    teacher = signals(theirs, 200, scores=scores, corners=theirs, boxes=torch.zeros(1, 4, 4))
    found, there = same_regions(term_of("weighted_scores"), "box", student, teacher)
    assert there is not None
    assert there.tolist() == [True, True, True, False]
    assert found.taps["box.scores"][0, :3, 0].tolist() == [2.0, 3.0, 1.0]
    wanted = deltas_of(theirs[:, [1, 2, 0]] / 2, anchors[:, :3], None)
    torch.testing.assert_close(found.taps["box.boxes"][:, :3], wanted)
    few = signals(theirs[:, 3:].repeat(1, 4, 1), 200, scores=scores)
    with pytest.raises(UserError, match=r"distill\.weighted_scores: of the student's 4 box anchors 0\.0%"):
        same_regions(term_of("weighted_scores"), "box", student, few)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_boxes_of_a_teacher_that_codes_them_otherwise_are_compared(kind: str) -> None:
    """A Faster R-CNN weighs its deltas by ten, FCOS has none: what both mean is compared."""
    student, teacher = made(kind), made("faster_rcnn", seed=1)
    ours, theirs = taught(student, teacher)
    found, there = same_regions(term_of("bounded_regression"), "box", ours, theirs)
    assert there is None
    anchors = ours.taps["box.anchors"]
    deltas, corners = found.taps["box.boxes"][:, :, 1], found.taps["box.corners"][:, :, 1]
    coder = student.model.box_coder
    decode = coder.decode if kind == "fcos" else coder.decode_single
    back = torch.stack([decode(*pair) for pair in zip(deltas, anchors, strict=True)])
    torch.testing.assert_close(back.view(corners.shape), corners, atol=0.02, rtol=1e-3)


@pytest.mark.parametrize("kind", ["retinanet", "ssdlite", "fcos", "faster_rcnn"])
def test_teachers_of_other_anchors_and_sizes_teach(kind: str) -> None:
    """The teacher sees twice the size, and has a level more where its strides are its own."""
    more: dict[str, Any] = {} if kind == "ssdlite" else {"strides": [8, 16, 32]}
    if kind in ("retinanet", "faster_rcnn"):
        more["anchors"] = [32, 48, 96]
    ours, theirs = taught(made(kind), made(kind, seed=1, **more), side=128)
    assert ours.taps["size"].tolist() != theirs.taps["size"].tolist()
    classes = "weighted_scores" if kind in ("retinanet", "fcos") else "weighted_classes"
    for loss in (classes, "bounded_regression"):
        found = of_heads(term_of(loss), ours, theirs)
        assert found.shape == (2,)
        assert bool((found > 0).all()), loss
        assert bool(found.isfinite().all())
    assert of_heads(term_of("teacher_boxes", confident=0.0), ours, theirs).isfinite().all()


def test_regions_that_nobody_else_was_asked_about_are_refused() -> None:
    """A student of two stages proposes its own, and so does another that is no teacher."""
    ours, theirs = (
        made("faster_rcnn", seed=seed)(torch.randn(2, 3, 64, 64), BOXES, LABELS) for seed in (0, 1)
    )
    with pytest.raises(UserError, match=r"distill\.weighted_classes: the student's regions are its own"):
        of_heads(term_of("weighted_classes"), ours, theirs)


def test_places_of_fcos_stand_for_boxes_as_it_chooses_them() -> None:
    """Final boxes that are the true ones, at twice the size, choose the places that labels choose."""
    student = made("fcos")
    ours, _ = taught(student, student)
    boxes = torch.cat([2 * BOXES, torch.full((2, 2, 1), 0.75), LABELS[..., None]], dim=2)
    answers = torch.cat([boxes, torch.zeros(2, 98, 6)], dim=1)
    teacher = Signals(torch.zeros(1), {"size": torch.tensor([128.0, 128.0]), "answers": answers})
    scores = torch.where(ours.taps["box.labels"][..., None] == torch.arange(3), 1.0, 0.0)
    scores[..., 0] = 0.0
    sure = {**ours.taps, "box.scores": torch.logit(0.75 * scores, eps=1e-6)}
    values, where = of_answers(term_of("response", boxes=0.0), "box", Signals(ours.output, sure), teacher)
    assert 0 < int((ours.taps["box.labels"] > 0).sum()) < 40
    assert bool(where.all())
    assert (
        float(values.detach().abs().max()) < 1e-4
    )  # any place chosen otherwise would cost (3/4)^2 of something
