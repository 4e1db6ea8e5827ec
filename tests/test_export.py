"""The exported file: checked before it has a name, right for any batch, and it says how to use it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from potstill.deploy.export import export_onnx
from potstill.errors import UserError
from potstill.models.cifar import resnet8
from potstill.models.preprocessing import IMAGENET, Preprocessing

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


@dataclass(frozen=True)
class Loaded:
    """What a run gives to export."""

    student: nn.Module
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = tuple(f"class {n}" for n in range(10))
    size: int = 32

    def samples(self, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, 256, (count, 3, self.size, self.size), generator=generator, dtype=torch.uint8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return resnet8().eval()


def test_the_file_takes_any_batch_of_plain_images(tmp_path: Path) -> None:
    loaded = Loaded(network(), IMAGENET)
    exported = export_onnx(loaded, tmp_path / "student.onnx")
    assert exported.samples == 64
    assert exported.largest_difference < 1e-3
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    images = loaded.samples(64)
    for size in (1, 3, 64):
        found = session.run(None, {"images": (images[:size].float() / 255).numpy()})[0]
        with torch.no_grad():
            expected = loaded.student(IMAGENET.normalise(images[:size])).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_metadata_says_how_to_use_it(tmp_path: Path) -> None:
    export_onnx(Loaded(network(), IMAGENET), tmp_path / "student.onnx")
    stored = {item.key: item.value for item in onnx.load(tmp_path / "student.onnx").metadata_props}
    assert json.loads(stored["classes"])[3] == "class 3"
    assert json.loads(stored["mean"]) == list(IMAGENET.mean)
    assert "0..1" in stored["input"]
    assert "inside the graph" in stored["preprocessing"]


@pytest.mark.parametrize("count", [1, 7, 10])
def test_few_samples_and_a_resize(tmp_path: Path, count: int) -> None:
    class Few(Loaded):
        def samples(self, count: int) -> Tensor:
            return super().samples(self.size)

    loaded = Few(network(), Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), size=24), size=count)
    exported = export_onnx(loaded, tmp_path / "student.onnx")
    assert exported.samples == count


def test_a_graph_with_other_preprocessing_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Preprocessing.normalise
    monkeypatch.setattr(Preprocessing, "normalise", lambda self, images: real(self, images) * 0.5)
    with pytest.raises(UserError, match="onnxruntime disagrees"):
        export_onnx(Loaded(network(), IMAGENET), tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []


def test_float_images_outside_0_to_1_are_not_called_plain(tmp_path: Path) -> None:
    class Floats(Loaded):
        def samples(self, count: int) -> Tensor:
            return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    same = Preprocessing((0.0,) * 3, (1.0,) * 3)
    loaded = Floats(network().train(), same)
    export_onnx(loaded, tmp_path / "student.onnx")
    stored = {item.key: item.value for item in onnx.load(tmp_path / "student.onnx").metadata_props}
    assert "0..1" not in stored["input"]
    assert loaded.student.training  # what was given is left as it was


def test_a_network_that_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    class Moody(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if float(images.sum()) > 0:
                return images.mean((2, 3))
            return images.sum((2, 3))

    with pytest.raises(UserError, match="export: torch cannot export the student"):
        export_onnx(Loaded(Moody(), IMAGENET), tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_disagrees_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill.deploy import export

    class Other:
        def __init__(self, *args: object, **options: object) -> None:
            pass

        def run(self, names: object, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.zeros((len(inputs["images"]), 10), np.float32)]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Other)
    with pytest.raises(UserError, match="onnxruntime disagrees with the trained student"):
        export.export_onnx(Loaded(network(), IMAGENET), tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'potstill\[export\]'"):
        export_onnx(Loaded(network(), IMAGENET), tmp_path / "student.onnx")
