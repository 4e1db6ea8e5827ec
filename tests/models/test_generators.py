"""Generators and discriminators: the given weights against a reference, shapes, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from potstill.errors import UserError
from potstill.models.discriminators import PatchDiscriminator
from potstill.models.generators import StyleGenerator, UNet
from potstill.models.weights import load_weights

WIDTHS = [32, 64, 128, *[128] * 10, 64, 32, 3]


def made_weights() -> dict[str, Tensor]:
    """Random weights in the layout of the given files."""
    generator = torch.Generator().manual_seed(3)
    state, before = {}, 3
    for place, width in enumerate(WIDTHS):
        kernel = 9 if place in (0, 15) else 3
        shape = (before, width) if place in (13, 14) else (width, before)
        state[f"conv.{place}"] = 0.05 * torch.randn(*shape, kernel, kernel, generator=generator)
        state[f"scale.{place}"] = 1 + 0.1 * torch.randn(width, generator=generator)
        state[f"shift.{place}"] = 0.1 * torch.randn(width, generator=generator)
        before = width
    return state


def correlated(maps: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """TensorFlow's "same" convolution of ``(C, H, W)``, one kernel entry after the other."""
    kernel = weight.shape[-1]
    height, width = (-(-side // stride) for side in maps.shape[1:])
    pads = [
        max((n - 1) * stride + kernel - side, 0)
        for n, side in zip((height, width), maps.shape[1:], strict=True)
    ]
    maps = np.pad(maps, [(0, 0), *((pad // 2, pad - pad // 2) for pad in pads)])
    answer = np.zeros((weight.shape[0], height, width))
    for y in range(kernel):
        for x in range(kernel):
            seen = maps[:, y : y + height * stride : stride, x : x + width * stride : stride][
                :, :height, :width
            ]
            answer += np.einsum("oi,ihw->ohw", weight[:, :, y, x], seen)
    return answer


def transposed(maps: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The gradient of a "same" convolution of stride 2 from twice the sides: every value is spread."""
    _, height, width = maps.shape
    answer = np.zeros((weight.shape[1], 2 * height + 1, 2 * width + 1))
    for y in range(3):
        for x in range(3):
            spread = np.einsum("io,ihw->ohw", weight[:, :, y, x], maps)
            answer[:, y : y + 2 * height : 2, x : x + 2 * width : 2] += spread
    return answer[:, : 2 * height, : 2 * width]  # padded by one pixel behind, and that is cut off


def reference(image: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """The stated layout, from ``(3, H, W)`` in 0..255 to the same, in float64."""

    def layer(maps: np.ndarray, place: int, stride: int = 1, *, active: bool = True) -> np.ndarray:
        weight = state[f"conv.{place}"]
        maps = transposed(maps, weight) if place in (13, 14) else correlated(maps, weight, stride)
        maps = (maps - maps.mean((1, 2), keepdims=True)) / np.sqrt(maps.var((1, 2), keepdims=True) + 1e-3)
        maps = maps * state[f"scale.{place}"][:, None, None] + state[f"shift.{place}"][:, None, None]
        return np.maximum(maps, 0) if active else maps

    maps = layer(layer(layer(image, 0), 1, 2), 2, 2)
    for block in range(5):
        maps = maps + layer(layer(maps, 3 + 2 * block), 4 + 2 * block, active=False)
    maps = layer(layer(layer(maps, 13), 14), 15, active=False)
    return np.clip(150 * np.tanh(maps) + 127.5, 0, 255)


def photo() -> Tensor:
    return torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1))


def difference(path: Path) -> float:
    model = StyleGenerator()
    load_weights(model, path, "teacher.weights")
    from safetensors.numpy import load_file

    state = {name: value.astype(np.float64) for name, value in load_file(path).items()}
    wanted = reference(photo()[0].double().numpy() * 255, state)
    with torch.no_grad():
        got = model.double()(photo().double())[0].numpy() * 255
    assert wanted.std() > 1
    return float(np.abs(got - wanted).max())


def test_style_generator_computes_the_stated_layout(tmp_path: Path) -> None:
    save_file(made_weights(), tmp_path / "style.safetensors")
    assert difference(tmp_path / "style.safetensors") < 1e-9


@pytest.mark.parametrize("name", ["la_muse", "udnie"])
def test_given_style_generators(name: str, data_root: Path) -> None:
    assert difference(data_root / "weights" / f"style_{name}_fp16.safetensors") < 1e-9


def test_style_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = made_weights()
    del state["scale.4"]
    save_file(state, tmp_path / "style.safetensors")
    with pytest.raises(UserError, match=r"missing: blocks\.0\.second\.1\.weight"):
        load_weights(StyleGenerator(), tmp_path / "style.safetensors", "teacher.weights")


def test_own_weights_load_again(tmp_path: Path) -> None:
    student = StyleGenerator(width=4, blocks=1, separable=True)
    save_file(student.state_dict(), tmp_path / "own.safetensors")
    load_weights(student, tmp_path / "own.safetensors", "student.weights")


@pytest.mark.parametrize(
    "make",
    [
        lambda: StyleGenerator(width=4, blocks=1),
        lambda: StyleGenerator(width=4, blocks=1, separable=True, kernel=5),
        lambda: UNet(width=4, levels=3),
    ],
)
def test_generators_keep_sides_and_range_and_learn(make: type[StyleGenerator]) -> None:
    torch.manual_seed(0)
    model, images = make(), torch.rand(2, 3, 16, 24)
    answer = model(images)
    assert answer.shape == images.shape
    assert 0 <= float(answer.detach().min()) < float(answer.detach().max()) <= 1
    torch.testing.assert_close(model(images[1:]), answer[1:], rtol=1e-4, atol=1e-5)  # no neighbour counts
    answer.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(("model", "least"), [(StyleGenerator(width=2, blocks=1), 4), (UNet(4, levels=3), 8)])
def test_sides_that_the_strides_do_not_divide_are_refused(model: StyleGenerator, least: int) -> None:
    with pytest.raises(UserError, match=f"multiples of {least}, got 18x16"):
        model(torch.rand(1, 3, 18, 16))


def test_discriminator_judges_patches_and_spectral_norm_bounds_it() -> None:
    torch.manual_seed(0)
    plain, bounded = PatchDiscriminator(width=4), PatchDiscriminator(width=4, spectral_norm=True)
    assert plain(torch.rand(2, 3, 64, 64)).shape == (2, 1, 6, 6)
    images = torch.rand(1, 3, 64, 64)
    for _ in range(30):
        bounded(images)  # power iterations, one a pass
    for module in bounded.modules():
        if isinstance(module, torch.nn.Conv2d):
            largest = torch.linalg.matrix_norm(module.weight.flatten(1), 2)
            assert float(largest.detach()) == pytest.approx(1.0, abs=0.05)
