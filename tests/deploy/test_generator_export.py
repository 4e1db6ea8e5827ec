"""The exported generator: pixel by pixel what torch gives, at other sizes too, or no file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from potstill.deploy import generator_export
from potstill.deploy.generator_export import export_generator
from potstill.errors import UserError
from potstill.models.generators import StyleGenerator

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@dataclass(frozen=True)
class Loaded:
    """What a run gives to export."""

    student: nn.Module

    def generator_inputs(self, count: int) -> Tensor:
        return torch.rand(count, 3, 32, 36, generator=torch.Generator().manual_seed(0))


class Fixed(nn.Module):
    """Takes images of one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.light = nn.Parameter(torch.full((1, 3, 32, 36), 1.5))

    def forward(self, images: Tensor) -> Tensor:
        return images * self.light


def test_a_generator_takes_any_batch_and_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = Loaded(StyleGenerator(width=2, blocks=1, kernel=3))
    exported = export_generator(loaded, tmp_path / "student.onnx")
    assert "same images" in exported.describe()
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3, 32, 36), (3, 3, 64, 20)):
        images = torch.rand(shape)
        with torch.no_grad():
            wanted = loaded.student(images).numpy()
        found = session.run(["answer"], {"images": images.numpy()})[0]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    stored = {item.key: item.value for item in onnx.load(exported.path).metadata_props}
    assert stored["input"] == "images: float32 (N, 3, height, width), values in 0..1"


def test_one_size_alone_and_values_in_range(tmp_path: Path) -> None:
    exported = export_generator(Loaded(Fixed()), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 32, 36]
    assert session.run(None, {"images": np.full((1, 3, 32, 36), 0.9, np.float32)})[0].max() == 1.0


def test_an_answer_that_differs_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_export, "TOLERANCE", -1.0)
    with pytest.raises(UserError, match="export: onnxruntime disagrees with the trained student at batch 1"):
        export_generator(Loaded(Fixed()), tmp_path / "student.onnx")
    assert not list(tmp_path.iterdir())
