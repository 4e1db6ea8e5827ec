"""Detectors as ONNX: the file answers with the trained network's boxes, or is none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from potstill.deploy import boxes_export
from potstill.deploy.boxes_export import export_boxes
from potstill.errors import UserError
from potstill.models import detectors
from potstill.models.detector import Detector
from potstill.models.preprocessing import Preprocessing
from tests.shapes import tiny

pytest.importorskip("torchvision")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@dataclass
class Run:
    """A student that finds something in noise."""

    student: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ("square", "disc")

    def samples(self, count: int) -> Tensor:
        random = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (min(count, 3), 3, 64, 96), generator=random, dtype=torch.uint8)


def run(kind: str, size: int | None = None) -> Run:
    torch.manual_seed(0)
    model: Detector = getattr(detectors, kind)(2, **tiny(kind)["arguments"])
    for name, module in model.named_modules():  # new heads say the same, and hardly anything, of all regions
        if "head" in name and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            module.bias = None if module.bias is None else nn.Parameter(torch.zeros_like(module.bias))
    return Run(model.eval(), Preprocessing((0.4,) * 3, (0.25,) * 3, size))


KINDS = [("faster_rcnn", 48), ("retinanet", None), ("fcos", None), ("ssdlite", None), ("ssd", None)]


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_the_file_answers_with_the_same_boxes(kind: str, size: int | None, tmp_path: Path) -> None:
    loaded = run(kind, size)
    found = export_boxes(loaded, tmp_path / "student.onnx")
    assert found.boxes > 20
    assert found.alike == found.boxes
    assert found.largest_difference < 0.05
    session: Any = onnxruntime.InferenceSession(str(found.path))
    given = session.get_modelmeta().custom_metadata_map
    assert json.loads(given["classes"]) == ["square", "disc"]
    images = loaded.samples(1)
    boxes = session.run(None, {"images": (images.float() / 255).numpy()})[0]
    assert boxes.shape == (1, 100, 6)
    with torch.no_grad():  # in pixels of the given images, whatever the network sees
        seen = loaded.student(loaded.preprocessing.normalise(images))[0].numpy()
    scale = np.array([1.0, 1.0] if size is None else [96 / size, 64 / size])
    np.testing.assert_allclose(boxes[0, :, 4], seen[:, 4], atol=1e-4)
    assert boxes[0, 0, :2] == pytest.approx(seen[0, :2] * scale, abs=0.05)


def test_a_file_that_answers_otherwise_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes_export, "PIXELS", -1.0)
    with pytest.raises(UserError, match=r"export: onnxruntime disagrees .* boxes differ"):
        export_boxes(run("retinanet"), tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_traced_is_told(tmp_path: Path) -> None:
    loaded = run("retinanet")
    loaded.student = Untraceable()
    with pytest.raises(UserError, match=r"export: torch cannot export the student: "):
        export_boxes(loaded, tmp_path / "student.onnx")


class Untraceable(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(images).sum(dim=(1, 2, 3))[:, None, None].expand(-1, 100, 6)
