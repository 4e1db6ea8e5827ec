"""Networks by name: own code, timm, torchvision, and the reference networks with their real weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from potstill.errors import UserError
from potstill.measure import macs, parameters
from potstill.models import ModelConfig, Preprocessing, build, load_weights, preprocessing_of
from potstill.models.cifar import resnet, resnet8, resnet20, resnet56
from potstill.models.preprocessing import IMAGENET


def make(tmp_path: Path, **config: object) -> nn.Module:
    return build(ModelConfig(**config), num_classes=7, search=[tmp_path], where="student")  # type: ignore[arg-type]


def test_a_file_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef net(width, num_classes):\n    return nn.Linear(width, num_classes)\n"
    )
    made = make(tmp_path, model="nets.py:net", arguments={"width": 3})
    assert made.weight.shape == (7, 3)
    fixed = make(tmp_path, model="nets.py:net", arguments={"width": 3, "num_classes": 2})
    assert fixed.weight.shape == (2, 3)


def test_a_file_that_fails_says_how(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(UserError, match=r"student\.model: running .*broken.py failed: ModuleNotFoundError"):
        make(tmp_path, model="broken.py:net")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {}['width']", r"student\.model: nets\.py:net failed: KeyError: 'width'"),
        ("return open('/nowhere/x')", "failed: FileNotFoundError: .*/nowhere/x"),
        ("raise ValueError('only odd')", "failed: ValueError: only odd"),
        ("return nn.Linear('a')", r"student\.arguments: nets\.py:net refuses"),
        ("return 3", r"student\.model: expected a torch\.nn\.Module from nets\.py:net, got int"),
        ("return nn.LazyLinear(3)", r"student\.model: nets\.py:net has lazy layers"),
    ],
)
def test_a_maker_that_fails_says_how(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "nets.py").write_text(f"from torch import nn\n\n\ndef net():\n    {body}\n")
    with pytest.raises(UserError, match=message):
        make(tmp_path, model="nets.py:net")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet8", r"student\.model: expected module:attribute or file.py:attribute, got 'resnet8'"),
        ("potstill.models.cifra:resnet8", r"student\.model: cannot import 'potstill.models.cifra'"),
        ("potstill.models.cifar:resnet9", r"has no attribute 'resnet9'; did you mean 'resnet"),
        ("timm:resnet19", r"timm has no model 'resnet19'; did you mean"),
        ("torchvision:resnet19", r"torchvision has no model 'resnet19'; did you mean"),
    ],
)
def test_names_that_are_not_there(tmp_path: Path, model: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=message):
        make(tmp_path, model=model)


def test_libraries_networks_get_the_classes_of_the_data(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    images = torch.zeros(2, 3, 64, 64)
    for model in ("timm:mobilenetv3_small_050", "torchvision:mobilenet_v3_small"):
        made = make(tmp_path, model=model).eval()
        with torch.no_grad():
            assert made(images).shape == (2, 7)


def test_a_networks_own_preprocessing_comes_before_the_usual(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    inception = ModelConfig(model="timm:vit_tiny_patch16_224")
    made = build(inception, num_classes=2, search=[], where="student")
    assert preprocessing_of(made, inception, 3, None).mean == (0.5, 0.5, 0.5)
    plain = ModelConfig(model="a:b")
    assert preprocessing_of(nn.Identity(), plain, 3, None) == IMAGENET
    assert preprocessing_of(nn.Identity(), plain, 1, None) == Preprocessing((0.5,), (0.5,))
    fallback = Preprocessing((0.1,), (0.2,), 9)
    assert preprocessing_of(nn.Identity(), plain, 1, fallback) == fallback
    said = ModelConfig(model="a:b", mean=(0.3,), std=(0.4,), size=5)
    assert preprocessing_of(nn.Identity(), said, 1, fallback) == Preprocessing((0.3,), (0.4,), 5)
    with pytest.raises(UserError, match=r"student\.std: expected standard deviations above 0"):
        preprocessing_of(nn.Identity(), ModelConfig(model="a:b", std=(0.0,)), 1, None)
    with pytest.raises(UserError, match=r"student\.std: expected standard deviations above 0"):
        preprocessing_of(nn.Identity(), ModelConfig(model="a:b", std=(float("nan"),)), 1, None)
    with pytest.raises(UserError, match=r"student\.mean: expected finite means"):
        preprocessing_of(nn.Identity(), ModelConfig(model="a:b", mean=(float("inf"),)), 1, None)


def test_normalisation_is_the_textbooks() -> None:
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET.mean, IMAGENET.std))
    expected = (images.double() / 255 - mean) / std
    torch.testing.assert_close(IMAGENET.normalise(images).double(), expected, rtol=1e-5, atol=1e-6)
    floats = images.float() / 255
    torch.testing.assert_close(IMAGENET.normalise(floats).double(), expected, rtol=1e-5, atol=1e-5)
    assert IMAGENET.normalise(floats.half()).dtype == torch.float32
    assert IMAGENET.normalise(floats.double()).dtype == torch.float64
    resized = Preprocessing(IMAGENET.mean, IMAGENET.std, 10).normalise(images)
    assert resized.shape == (4, 3, 10, 10)
    with pytest.raises(UserError, match="expected 3 channels"):
        IMAGENET.normalise(images[:, :1])


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_cifar_resnets_have_the_published_parameters(depth: int, count: int) -> None:
    assert parameters(resnet(depth)) == count


def test_cifar_resnets_count_macs_as_by_hand() -> None:
    first = 32 * 32 * 16 * 3 * 9
    stage1 = 2 * 32 * 32 * 16 * 16 * 9
    stage2 = 16 * 16 * 32 * 9 * (16 + 32)
    stage3 = 8 * 8 * 64 * 9 * (32 + 64)
    assert macs(resnet8(), torch.zeros(1, 3, 32, 32)) == first + stage1 + stage2 + stage3 + 640


def test_depths_that_are_none() -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        resnet(9)


@pytest.mark.parametrize(("name", "maker", "published"), [("20", resnet20, 0.9173), ("56", resnet56, 0.9339)])
def test_the_real_weights_reach_their_published_accuracy(
    data_root: Path, name: str, maker: type[nn.Module], published: float
) -> None:
    model = maker()
    load_weights(model, data_root / "weights" / f"cifar10_resnet{name}.safetensors", "teacher.weights")
    images = np.load(data_root / "cifar10" / "test_images.npy", mmap_mode="r")[:600]
    labels = torch.from_numpy(np.load(data_root / "cifar10" / "test_labels.npy")[:600])
    with torch.no_grad():
        logits = model.eval()(IMAGENET.normalise(torch.from_numpy(images.copy()).permute(0, 3, 1, 2)))
    assert float((logits.argmax(dim=1) == labels).float().mean()) == pytest.approx(published, abs=0.025)
