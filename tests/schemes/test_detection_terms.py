"""Terms of detectors inside a scheme: two processes equal one, half precision stays near."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from potstill import distributed
from potstill.batch import Batch, Signals, Step
from potstill.matching.objective import Objective
from potstill.models import detectors
from potstill.models.detector import Detector
from potstill.schemes import Offline
from tests.shapes import tiny

pytest.importorskip("torchvision")
LEVEL = "model.backbone.fpn.layer_blocks.0"
HINT = {"region_hint": {"regions": "split", "layers": [LEVEL]}}
TERMS: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"weighted_classes": {}, "bounded_regression": {}, **HINT},
    "retinanet": {"weighted_scores": {}, "bounded_regression": {}, **HINT},
    "fcos": {"weighted_scores": {}, "bounded_regression": {}, **HINT},
    "ssdlite": {"weighted_classes": {}, "bounded_regression": {}, **HINT},
}


class EveryRegion:
    """Draws nothing: all regions learn."""

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return [(each > 0).byte() for each in labels], [(each == 0).byte() for each in labels]


def detector(kind: str, seed: int, channels: int) -> Detector:
    torch.manual_seed(seed)
    made: Detector = getattr(detectors, kind)(2, **tiny(kind, channels=channels)["arguments"])
    if kind == "faster_rcnn":
        made.model.rpn.fg_bg_sampler = made.model.roi_heads.fg_bg_sampler = EveryRegion()
    return made


def batch_of(rows: slice = slice(None)) -> Batch:
    random = torch.Generator().manual_seed(3)
    images = torch.randn(4, 3, 64, 64, generator=random)
    corners = torch.rand(4, 2, 2, generator=random) * 32
    boxes = torch.cat([corners, corners + 12 + 16 * torch.rand(4, 2, 2, generator=random)], dim=2)
    labels = torch.tensor([[1, 2], [2, 0], [1, 1], [0, 0]])
    target = torch.cat([boxes / 64, labels[..., None]], dim=2)
    student = {"images": images[rows], "boxes": boxes[rows], "labels": labels[rows]}
    teacher = {"images": images[rows], "proposals": torch.zeros(len(images[rows]), 0, 4)}
    return Batch({"student": student, "teacher": teacher}, target[rows], None, torch.arange(4)[rows])


def supervised(signals: Signals, batch: Batch) -> Tensor:
    del batch
    return signals.output.float()


def scheme_of(kind: str, terms: dict[str, Any] | None = None) -> Offline:
    batch = batch_of(slice(2))
    example = Batch(
        {role: {"images": batch.input(role)["images"]} for role in ("student", "teacher")},  # type: ignore[index]
        batch.target,
        None,
        batch.index,
    )
    objective = Objective(TERMS[kind] if terms is None else terms, supervised)
    scheme = Offline(detector(kind, 0, 32), detector(kind, 1, 64), objective, example=example)
    scheme.eval()  # batch normalisation would mix the images of a process
    return scheme


def gradients(scheme: Offline) -> dict[str, Tensor]:
    return {
        name: parameter.grad for name, parameter in scheme.named_parameters() if parameter.grad is not None
    }


ALL: dict[str, dict[str, Any]] = {
    "teacher_boxes": {"confident": 0.01},
    "response": {},
    "sure": {"loss": "region_hint", "regions": "confident", "layers": [LEVEL]},
}


@pytest.mark.parametrize("kind", list(TERMS))
def test_every_term_of_a_batch_is_the_sum_of_its_images(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image without a box is one of them."""
    monkeypatch.setitem(TERMS, kind, {**TERMS[kind], **ALL})
    scheme = scheme_of(kind)
    with torch.no_grad():
        whole = scheme(batch_of()).parts
        single = [scheme(batch_of(slice(place, place + 1))).parts for place in range(4)]
    assert set(whole) == {"labels", *TERMS[kind]}
    for name, part in whole.items():
        assert float(part.total) == pytest.approx(
            sum(float(one[name].total) for one in single), rel=1e-4, abs=1e-6
        )
        assert part.count == sum(one[name].count for one in single)


@pytest.mark.parametrize("most", [0, 2])
@pytest.mark.parametrize("kind", list(TERMS))
def test_a_batch_without_any_object_teaches_background(
    kind: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rows that only fill, or without a row."""
    monkeypatch.setitem(TERMS, kind, {**TERMS[kind], **ALL})
    scheme, batch = scheme_of(kind), batch_of()
    student, target = batch.input("student"), batch.target
    assert isinstance(student, dict)
    assert target is not None
    nothing = {"boxes": student["boxes"][:, :most] * 0, "labels": student["labels"][:, :most] * 0}
    inputs = {"student": {**student, **nothing}, "teacher": batch.input("teacher")}
    step = scheme(Batch(inputs, target[:, :most] * 0, None, batch.index))
    step.loss.backward()
    assert all(bool(each.isfinite().all()) for each in gradients(scheme).values())
    assert float(step.parts["bounded_regression"].total.detach()) == 0.0
    classes = "weighted_scores" if kind in ("retinanet", "fcos") else "weighted_classes"
    assert float(step.parts[classes].total.detach()) > 0.0


def _half(rank: int, store: str, folder: str) -> None:
    """One of two processes: half of the batch, through DDP."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for kind in TERMS:
        scheme = scheme_of(kind)
        scheme.parts["student"] = DistributedDataParallel(scheme.parts["student"])
        step: Step = scheme(batch_of(slice(2 * rank, 2 * rank + 2)))
        step.loss.backward()
        made = {name.replace("student.module.", "student."): each for name, each in gradients(scheme).items()}
        found[kind] = made, {name: part.total.detach() for name, part in step.parts.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.stop()


def test_two_processes_equal_one(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath))
        multiprocessing.spawn(_half, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for kind in TERMS:
        scheme = scheme_of(kind)
        step = scheme(batch_of())
        step.loss.backward()
        expected = gradients(scheme)
        assert any("adapters" in name for name in expected)
        for one in both:
            assert one[kind][0].keys() == expected.keys()
            for name, gradient in expected.items():
                torch.testing.assert_close(one[kind][0][name], gradient, rtol=1e-3, atol=1e-6)
        for name, part in step.parts.items():
            total = sum(float(one[kind][1][name]) for one in both)
            assert total == pytest.approx(float(part.total.detach()), rel=1e-4)


@pytest.mark.parametrize("kind", list(TERMS))
def test_half_precision_stays_near(kind: str) -> None:
    """Proposals may differ; what is compared on them hardly does."""
    scheme = scheme_of(kind)
    plain = scheme(batch_of())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = scheme(batch_of())
    half.loss.backward()
    for name, part in plain.parts.items():
        assert float(half.parts[name].mean.detach()) == pytest.approx(float(part.mean.detach()), rel=0.1)
    assert all(bool(each.isfinite().all()) for each in gradients(scheme).values())


@pytest.mark.parametrize("kind", ["faster_rcnn", "fcos"])
def test_hints_of_a_pyramid_start_at_their_best_fit(kind: str) -> None:
    hint = {"loss": "region_hint", "regions": "none", "layers": [LEVEL]}
    random, fitted = (scheme_of(kind, {"hint": {**hint, "adapter": how}}) for how in ("random", "fitted"))
    batch = batch_of()
    before, after = (float(scheme(batch).parts["hint"].total.detach()) for scheme in (random, fitted))
    assert after < before
    assert "fitted (explains " in fitted.objective.describe()[-1]
