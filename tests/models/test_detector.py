"""Detectors: boxes for users, raw answers on the same regions for terms, a loss for each image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.matching.detected import of_heads
from potstill.matching.terms import Term, TermConfig
from potstill.models import detectors
from potstill.models._rows import IGNORED, renamed
from potstill.models.detector import Detector
from potstill.models.pyramid import Pyramid
from potstill.teachers import Frozen
from tests.shapes import tiny

pytest.importorskip("torchvision")
KINDS = ("faster_rcnn", "retinanet", "fcos", "ssdlite", "ssd")
BOXES = torch.tensor(
    [[[5.0, 5, 30, 34], [30, 10, 60, 50]], [[8, 20, 40, 44], [0, 0, 0, 0]], [[0] * 4, [0] * 4]]
)
LABELS = torch.tensor([[1, 2], [2, 0], [0, 0]])


def made(kind: str, seed: int = 0, **more: Any) -> Detector:
    torch.manual_seed(seed)
    detector: Detector = getattr(detectors, kind)(2, **tiny(kind, **more)["arguments"])
    return detector


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def answered(detector: Detector, seed: int = 0, rows: slice = slice(None)) -> Signals:
    torch.manual_seed(seed)  # two stages draw the regions that learn
    found = detector(images()[rows], BOXES[rows], LABELS[rows])
    assert isinstance(found, Signals)
    return found


def taught(student: Detector, teacher: Detector) -> tuple[Signals, Signals]:
    """What both say of the student's regions, the teacher called as a scheme calls it."""
    ours = answered(student)
    inputs = {"images": images(), "proposals": torch.zeros(3, 0, 4)}
    batch = Batch({"student": {"images": images()}, "teacher": inputs}, None, None, torch.arange(3))
    return ours, Frozen(teacher)(batch, ours)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_come_as_one_tensor(kind: str) -> None:
    found = made(kind).eval()(images())
    assert found.shape == (3, 100, 6)
    assert bool((found[..., 4].diff(dim=1) <= 0).all())
    filled = found[found[..., 5] > 0]
    assert set(filled[:, 5].tolist()) <= {1.0, 2.0}
    assert float(found[..., :4].min()) >= 0.0
    assert float(found[..., :4].max()) <= 64.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_batch_is_that_of_its_images(kind: str) -> None:
    """In eval mode, so that batch normalisation does not mix them; an image without a box is one of them."""
    detector = made(kind).eval()
    if kind == "faster_rcnn":  # every region learns, so that nothing is drawn
        model = detector.model
        model.rpn.fg_bg_sampler = _All()
        model.roi_heads.fg_bg_sampler = _All()
    whole = answered(detector).output
    single = torch.cat([answered(detector, rows=slice(place, place + 1)).output for place in range(3)])
    assert whole.shape == (3,)
    torch.testing.assert_close(whole, single, atol=1e-4, rtol=1e-4)


class _All:
    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [(each > 0).to(torch.uint8) for each in labels], [
            (each == 0).to(torch.uint8) for each in labels
        ]


@pytest.mark.parametrize("kind", ["retinanet", "ssdlite", "ssd", "fcos"])
def test_the_loss_is_torchvisions(kind: str) -> None:
    """Of one image, asked through torchvision's own training pass at the image's own size."""
    detector = made(kind)
    model = detector.model
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    size = {"size_divisible": 1} if not kind.startswith("ssd") else {}
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    model.transform = GeneralizedRCNNTransform(64, 64, [0.0] * 3, [1.0] * 3, **size)
    model.train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    theirs = model(list(images()[:1]), [{"boxes": BOXES[0], "labels": LABELS[0]}])
    ours = answered(detector, rows=slice(0, 1)).output
    torch.testing.assert_close(ours[0], torch.stack(list(theirs.values())).sum(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_teacher_and_student_score_the_same_regions(kind: str) -> None:
    """A teacher with the student's weights says what the student says; it builds no targets."""
    student = made(kind).eval()
    ours, theirs = taught(student, made(kind).eval())
    for name in ("box.classes", "box.scores", "box.boxes", "rpn.classes", "rpn.boxes", "box.anchors"):
        assert (name in ours.taps) == (name in theirs.taps)
        if name in ours.taps:
            valid = (
                ours.taps["box.labels"] != IGNORED
                if name.startswith("box") and kind == "faster_rcnn"
                else None
            )
            pair = ours.taps[name].detach(), theirs.taps[name]
            if valid is not None:  # rows that only fill are scored on an empty region
                pair = pair[0][valid], pair[1][valid]
            torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)
    assert not [name for name in theirs.taps if name.endswith((".labels", ".deltas"))]


def test_a_teacher_at_another_resolution_gets_the_regions_at_its_own() -> None:
    student, teacher = made("faster_rcnn").eval(), made("faster_rcnn", seed=1).eval()
    ours = answered(student)
    inputs = teacher.beside({"images": torch.zeros(3, 3, 128, 96)}, ours)
    scale = torch.tensor([1.5, 2.0, 1.5, 2.0])
    torch.testing.assert_close(inputs["proposals"], ours.taps["box.anchors"] * scale)


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_classes_in_another_order_are_brought_to_the_datas(kind: str) -> None:
    plain, other = made(kind).eval(), made(kind).eval()
    boxes = torch.tensor([[[0.0, 0, 9, 9, 0.9, 2], [0, 0, 9, 9, 0.8, 1], [0, 0, 0, 0, 0, 0]]])
    assert renamed(boxes, [2, 1])[0, :, 5].tolist() == [1.0, 2.0, 0.0]
    other.order = [2]  # of a teacher's classes the data may have some alone
    found, kept = plain(images()), other(images())
    assert isinstance(kept, Tensor)
    assert int((kept[..., 5] == 1).sum()) == int((found[..., 5] == 2).sum())
    assert not (kept[..., 5] > 1).any()
    other.order = [2, 1]
    ours, said = taught(plain, other)
    name = "box.classes" if "box.classes" in said.taps else "box.scores"
    valid = ours.taps["box.labels"] != IGNORED if kind == "faster_rcnn" else ours.taps["box.labels"] > -9
    pair = said.taps[name][..., [0, 2, 1]][valid], ours.taps[name].detach()[valid]
    torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)


def test_two_stages_need_the_regions_of_a_student() -> None:
    with pytest.raises(UserError, match="answers to its student's regions"):
        made("faster_rcnn").eval()(images(), proposals=torch.zeros(3, 0, 4))


@pytest.mark.parametrize(
    ("loss", "kind"), [("weighted_classes", "faster_rcnn"), ("weighted_scores", "retinanet")]
)
def test_a_term_is_a_mean_over_regions_then_images(loss: str, kind: str) -> None:
    """Against a loop over images, heads and regions."""
    ours, theirs = taught(made(kind).eval(), made(kind, seed=1).eval())
    term = Term(loss, TermConfig(loss=loss))
    found = of_heads(term, ours, theirs)
    for image in range(3):
        wanted = 0.0
        for head in ("rpn", "box"):
            name = f"{head}.{term.signal}"
            if name not in ours.taps:
                continue
            labels = ours.taps[f"{head}.labels"][image]
            values = [
                float(
                    term.function(
                        *(each.taps[name][image, row : row + 1].detach() for each in (ours, theirs)),
                        label[None],
                    )
                )
                for row, label in enumerate(labels)
                if label >= 0
            ]
            count = len(values) if term.signal == "classes" else max(int((labels > 0).sum()), 1)
            wanted += sum(values) / max(count, 1)
        assert float(found[image].detach()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_bounded_regression_leaves_images_without_boxes_alone(kind: str) -> None:
    ours, theirs = taught(made(kind).eval(), made(kind, seed=1).eval())
    found = of_heads(Term("bounded_regression", TermConfig(loss="bounded_regression")), ours, theirs)
    assert found.shape == (3,)
    assert float(found[2].detach()) == 0.0
    assert float(found[:2].detach().sum()) > 0.0


def test_terms_that_do_not_fit_the_heads_are_named() -> None:
    ours, theirs = taught(
        made("retinanet").eval(), made("retinanet", seed=1, strides=[8, 16], anchors=[8, 40]).eval()
    )
    with pytest.raises(UserError, match=r"distill\.weighted_classes: .*answers with boxes and scores"):
        of_heads(Term("weighted_classes", TermConfig(loss="weighted_classes")), ours, theirs)
    ours, theirs = taught(made("faster_rcnn").eval(), made("retinanet").eval())
    with pytest.raises(UserError, match=r"no rpn\.classes: .*response takes a teacher of any kind"):
        of_heads(Term("weighted_classes", TermConfig(loss="weighted_classes")), ours, theirs)


BACKBONES = [
    "resnet18",
    "shufflenet_v2_x0_5",
    "efficientnet_b0",
    "timm:resnet10t",
    "timm:mobilenetv3_small_050",
]


@pytest.mark.parametrize("backbone", [*BACKBONES, "swin_t", "timm:rexnet_100"])
def test_a_pyramid_stands_on_any_backbone(backbone: str) -> None:
    if backbone.startswith("timm"):
        pytest.importorskip("timm")
    levels = Pyramid(backbone, (8, 16, 32), 8).eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(each.shape[1:]) for each in levels.values()] == [(8, 8, 12), (8, 4, 6), (8, 2, 3)]


def test_levels_are_what_timms_own_network_gives() -> None:
    """Also where stages are more than their children: GhostNet has an activation between them."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    levels = Pyramid("timm:ghostnet_050", (8, 16, 32), 8).eval()
    torch.manual_seed(0)
    whole, images = timm.create_model("ghostnet_050").eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = whole.forward_intermediates(images, intermediates_only=True)[-3:]
        for given, each in zip(levels.stages(images), wanted, strict=True):
            torch.testing.assert_close(given, each)


def test_backbones_that_are_none_are_named() -> None:
    with pytest.raises(UserError, match=r"arguments\.backbone: .*resnet18"):
        Pyramid("resnet81", (8,), 8)
    with pytest.raises(UserError, match=r"arguments\.strides: mobilenet_v2 has .*got \[7\]"):
        Pyramid("mobilenet_v2", (7,), 8)
    with pytest.raises(UserError, match=r"arguments\.strides: expected the finest first"):
        Pyramid("mobilenet_v2", (16, 8), 8)
    with pytest.raises(
        UserError, match=r"arguments\.backbone: vit_b_16 gives no maps|arguments\.strides: vit"
    ):
        Pyramid("vit_b_16", (8, 16), 8)
    with pytest.raises(UserError, match=r"arguments\.weights: no file 'gone\.pth'"):
        Pyramid("mobilenet_v2", (8,), 8, weights="gone.pth")
    with pytest.raises(UserError, match="expected a detector as torchvision's"):
        Detector(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("faster_rcnn", {"anchors": [16]}, r"arguments\.anchors: expected one size a level \(2\), got 1"),
        ("retinanet", {"anchors": [16, 0]}, r"arguments\.anchors: expected sizes above 0"),
        ("faster_rcnn", {"regions": 0}, r"arguments\.regions: must be at least 1, got 0"),
        ("ssdlite", {"channels": 0}, r"arguments\.channels: must be at least 1, got 0"),
        ("fcos", {"channels": 24}, r"arguments\.channels: FCOS takes multiples of 32, got 24"),
    ],
)
def test_detectors_that_could_find_nothing_are_refused(kind: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(kind, **more)


def test_detectors_of_more_than_boxes_are_refused() -> None:
    """Torchvision's Mask R-CNN would want masks among the labels."""
    model = made("faster_rcnn").model
    model.roi_heads.mask_predictor = nn.Identity()
    with pytest.raises(UserError, match="model: FasterRCNN also learns masks; expected a detector of boxes"):
        Detector(model)
