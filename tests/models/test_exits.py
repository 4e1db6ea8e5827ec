"""Exits on any classifier: where they may stand, what they give, what they cost."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.measure import macs, parameters
from potstill.models.cifar import resnet8, resnet56
from potstill.models.exit_heads import Exit, Heads
from potstill.models.exits import WithExits

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Tokens(nn.Module):
    """Equal blocks over tokens, as a transformer has."""

    def __init__(self, blocks: int = 8, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width)) for _ in range(blocks)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.embed(tokens)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        logits: Tensor = self.head(tokens.mean(dim=1))
        return logits


class Branches(nn.Module):
    """A network with a branch that the example does not take, and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.skipped = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 5)
        self.use = False

    def forward(self, images: Tensor) -> Tensor:
        maps = self.again(self.again(self.first(images)))
        if self.use:
            maps = self.skipped(maps)
        logits: Tensor = self.head(self.last(maps).mean(dim=(2, 3)))
        return logits


def test_auto_places_exits_at_the_ends_of_stages_but_the_last() -> None:
    model = resnet8()
    network = WithExits(model, "auto", IMAGES)
    assert network.paths == ("layer1", "layer2")
    assert network.deepest == "layer3"
    assert network.model is model
    signals = network(IMAGES)
    shapes = {key: tuple(tensor.shape) for key, tensor in signals.taps.items()}
    assert shapes == {
        "exit:layer1": (2, 10),
        "feature:layer1": (2, 64, 8, 8),
        "exit:layer2": (2, 10),
        "feature:layer2": (2, 64, 8, 8),
        "feature:layer3": (2, 64, 8, 8),
    }


def test_the_classifier_answers_as_it_does_alone() -> None:
    model = resnet8().eval()
    alone = model(IMAGES)
    modes = [module.training for module in model.modules()]
    network = WithExits(model, ["layer2", "layer1.0"], IMAGES)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(network.eval()(IMAGES).output, alone)
    assert network.paths == ("layer1.0", "layer2")


def test_exits_are_put_in_the_order_in_which_they_are_computed() -> None:
    network = WithExits(resnet56(), ["layer3.2", "layer1", "layer2.4"], IMAGES)
    assert network.paths == ("layer1", "layer2.4", "layer3.2")
    assert network(IMAGES).taps["feature:layer3.2"].shape == (2, 64, 8, 8)


def test_they_cost_little() -> None:
    model = resnet56()
    before = parameters(model)
    network = WithExits(model, "auto", IMAGES)
    assert parameters(network) - before <= 0.15 * before
    assert macs(network, IMAGES[:1]) <= 1.05 * macs(model, IMAGES[:1])


def test_residual_heads_end_at_the_deepest_shape_with_no_block_too_many() -> None:
    model = resnet56()
    network = WithExits(model, ["layer1.4", "layer2.4", "layer3.3"], IMAGES, heads="residual")
    assert [len(list(one.bottleneck.children())) for one in network.exits] == [2, 1, 0]  # type: ignore[union-attr]
    assert parameters(network) - parameters(model) <= 0.15 * parameters(model)
    maps = network(IMAGES).taps["feature:layer3.3"]
    assert torch.equal(network.exits[2].head(maps.mean(dim=(2, 3))), network(IMAGES).taps["exit:layer3.3"])


def test_residual_heads_may_have_more_blocks_where_maps_are_large() -> None:
    model = resnet56()
    paths = ["layer1.1", "layer2.4", "layer3.3"]
    network = WithExits(model, paths, IMAGES, heads="residual", blocks=[3, 1])
    found = [[block.stride for block in one.bottleneck.children()] for one in network.exits]  # type: ignore[union-attr]
    assert found == [[2, 1, 1, 2], [2], []]
    first = WithExits(model, paths[:1], IMAGES, heads="residual", blocks=[3, 1])
    assert parameters(first) - parameters(model) <= 0.15 * parameters(model)
    assert (
        first(IMAGES).taps["feature:layer1.1"].shape == first(IMAGES).taps[f"feature:{first.deepest}"].shape
    )


def test_every_exit_learns_and_the_classifier_gets_their_gradient() -> None:
    network = WithExits(resnet8(), "auto", IMAGES)
    signals = network(IMAGES)
    sum(tensor.square().mean() for key, tensor in signals.taps.items() if key.startswith("exit:")).backward()
    assert all(parameter.grad is not None for parameter in network.exits.parameters())
    assert network.model.get_submodule("layer1.0.conv1").weight.grad is not None
    assert network.model.get_submodule("layer3.0.conv1").weight.grad is None


def test_a_copy_has_taps_of_its_own() -> None:
    network = WithExits(resnet8(), "auto", IMAGES).eval()
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.model.get_submodule("conv1").weight.zero_()
    mine, theirs = network(IMAGES).taps, other(IMAGES).taps
    assert not torch.equal(mine["exit:layer1"], theirs["exit:layer1"])
    assert torch.equal(network(IMAGES).taps["exit:layer1"], mine["exit:layer1"])


def test_tokens_have_exits_at_the_ends_of_quarters() -> None:
    tokens = torch.randn(2, 7, 3)
    network = WithExits(Tokens(), "auto", tokens)
    assert network.paths == ("blocks.1", "blocks.3", "blocks.5")
    taps = network(tokens).taps
    assert taps["exit:blocks.3"].shape == (2, 5)
    assert taps["feature:blocks.3"].shape == taps["feature:blocks.7"].shape == (2, 12)


def test_vectors_have_exits_where_they_are_listed() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    taps = WithExits(model, ["1"], torch.randn(2, 4))(torch.randn(5, 4)).taps
    assert taps["exit:1"].shape == (5, 3)
    assert taps["feature:1"].shape == taps["feature:3"].shape == (5, 8)
    with pytest.raises(UserError, match="auto finds no stage"):
        WithExits(model, "auto", torch.randn(2, 4))


@pytest.mark.parametrize("heads", ["separable", "residual"])
@pytest.mark.parametrize("size", [16, 15, 13, 12, 7, 6])
def test_any_size_of_maps_is_brought_to_the_deepest(size: int, heads: Heads) -> None:
    exit_ = Exit((2, 3, size, size), (2, 10, 6, 6), 4, heads=heads)
    logits, feature = exit_(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 4)
    assert feature.shape == (2, 10, 6, 6)


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (["layer3"], "'layer3' is at or after the last features"),
        (["linear"], "'linear' is at or after the last features"),
        (["layr1"], "no layer 'layr1'; did you mean 'layer1'"),
        (["layer1", "layer1"], "two exits at one place: 'layer1' is listed twice"),
        (["layer1", "layer1.0"], "two exits at one place: .* gives the very tensor of 'layer1"),
        (["layer3.0"], "gives the very tensor of 'layer3'"),
        ([], "expected at least one layer"),
        ("layer1", "expected 'auto' or a list of layers, got 'layer1'"),
    ],
)
def test_bad_places(exits: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WithExits(resnet8(), exits, IMAGES)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("skipped", "layer 'skipped' never ran on the example"),
        ("again", "'again' cannot have an exit: it runs more than once"),
    ],
)
def test_layers_that_cannot_be_tapped(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        WithExits(Branches(), [path], IMAGES)


def test_a_layer_that_is_overwritten_in_place_is_named() -> None:
    stages = nn.Conv2d(3, 4, 3, 2), nn.ReLU(inplace=True), nn.Conv2d(4, 8, 3, 2), nn.ReLU()
    model = nn.Sequential(*stages, nn.Flatten(), nn.Linear(8 * 49, 5))
    with pytest.raises(UserError, match=r"'0' cannot have an exit: .* overwrites its tensor in place"):
        WithExits(model, ["0"], IMAGES)
    assert WithExits(model, ["1"], IMAGES)(IMAGES).taps["exit:1"].shape == (2, 5)


def test_only_classifiers_have_exits() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 4, 3, 2))
    with pytest.raises(UserError, match=r"exits need logits \(N, classes\), got an output \(2, 4, 3, 3\)"):
        WithExits(model, ["0"], IMAGES)


def test_an_exit_needs_maps_at_least_as_large_as_the_deepest() -> None:
    with pytest.raises(UserError, match="are smaller than the deepest"):
        Exit((2, 4, 4, 4), (2, 8, 8, 8), 3, where="exits")
    with pytest.raises(UserError, match=r"no exit can bring vector \(2, 4\)"):
        Exit((2, 4), (2, 8, 8, 8), 3, where="exits")
