"""Removal is exact: what is masked and what is gone give one function; sizes agree with the plan."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from potstill import measure
from potstill.errors import UserError
from potstill.models.architecture import Architecture
from potstill.models.cifar import Block, resnet8, resnet20
from potstill.models.generators import StyleGenerator, UNet
from potstill.prune import Group, Plan, Slice, Structure, find_structure, masked, removed
from potstill.prune.removal import structure_after

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """Concatenation, a depth-wise convolution, and flattening: units that lie apart."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 6, 3, padding=1)
        self.two = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.norm = nn.BatchNorm2d(10)
        self.mix = nn.Conv2d(10, 5, 1)
        self.head = nn.Linear(5 * 16, 4)

    def forward(self, images: Tensor) -> Tensor:
        both = torch.cat([self.one(images), self.two(images)], dim=1).relu()
        pooled = nn.functional.adaptive_avg_pool2d(self.mix(self.norm(self.depthwise(both))).relu(), 4)
        out: Tensor = self.head(pooled.flatten(1))
        return out


class Twice(nn.Module):
    """One convolution that is called twice, so that what it reads is what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.stem(images).relu()
        for _ in range(2):
            hidden = self.again(hidden).relu()
        out: Tensor = self.head(hidden.mean(dim=(2, 3)))
        return out


def lively(model: nn.Module) -> nn.Module:
    """Batch norms with means and variances of their own, so that nothing is exact by accident."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


def every_second(structure: Structure, blocks: tuple[str, ...] = ()) -> Plan:
    """A plan that takes half of every group outside ``blocks``."""
    return Plan(
        blocks,
        {
            group.name: tuple(range(0, group.units, 2))
            for group in structure.groups
            if not group.within(blocks)
        },
    )


@pytest.mark.parametrize("make", [lambda: resnet20(), Mixed, Twice], ids=["resnet20", "mixed", "twice"])
def test_masks_and_slices_give_equal_outputs_and_losses(make: type[nn.Module]) -> None:
    model = lively(make())
    structure = find_structure(model, IMAGES)
    blocks = structure.blocks[1:3]
    plan = every_second(structure, blocks)
    assert plan
    with torch.no_grad():
        small, whole = removed(model, plan, structure)(IMAGES), masked(model, plan, structure)(IMAGES)
    torch.testing.assert_close(small, whole, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(small, model(IMAGES), atol=1e-3)
    labels = torch.tensor([0, 1, 1])
    cross_entropy = nn.functional.cross_entropy
    torch.testing.assert_close(cross_entropy(small, labels), cross_entropy(whole, labels))


def test_removing_units_that_nothing_reads_changes_no_output() -> None:
    model = lively(resnet8())
    structure = find_structure(model, IMAGES)
    group = structure.group("layer2.0.conv1")
    units = tuple(range(3, 20))
    (reader,) = group.readers
    with torch.no_grad():
        model.get_submodule(reader.module).weight[:, list(units)] = 0  # type: ignore[index]
        before = model(IMAGES)
        after = removed(model, Plan(units={group.name: units}), structure)(IMAGES)
    torch.testing.assert_close(after, before, atol=2e-5, rtol=1e-5)


def test_parameters_macs_and_bytes_agree_with_the_plan() -> None:
    model = resnet20().eval()
    structure = find_structure(model, IMAGES)
    plan = Plan(("layer1.1",), {"layer3.2.conv1": tuple(range(10))})
    small = removed(model, plan, structure)
    block = measure.parameters(model.get_submodule("layer1.1"))
    channels = 10 * (64 * 9 + 2 + 64 * 9)  # what writes a channel, its batch norm, what reads it
    assert measure.parameters(model) - measure.parameters(small) == block + channels
    gone = 2 * 16 * 16 * 9 * 16 * 16 + 10 * 2 * 64 * 9 * 4 * 4
    assert measure.macs(model, IMAGES[:1]) - measure.macs(small, IMAGES[:1]) == gone
    buffers = 4 * (2 * 16 * 2 + 10 * 2) + 2 * 8  # running means and variances; two counters of 8 bytes
    assert measure.size_bytes(model) - measure.size_bytes(small) == 4 * (block + channels) + buffers


def test_a_second_removal_needs_no_second_look() -> None:
    model = lively(Mixed())
    structure = find_structure(model, IMAGES)
    assert {group.name: group.units for group in structure.groups} == {"depthwise": 10, "mix": 5}
    first = Plan(units={"depthwise": (0, 3, 7), "mix": (4,)})
    small, left = removed(model, first, structure), structure_after(model, first, structure)
    assert {group.name: group.units for group in left.groups} == {"depthwise": 7, "mix": 4}
    second = Plan(units={"depthwise": (1, 4, 6), "mix": (0,)})  # numbers of the smaller network
    both = Plan(units={"depthwise": (0, 2, 3, 6, 7, 9), "mix": (0, 4)})
    with torch.no_grad():
        twice, once = removed(small, second, left)(IMAGES), removed(model, both, structure)(IMAGES)
    torch.testing.assert_close(twice, once)


def test_a_network_is_rebuilt_from_its_difference_and_its_weights() -> None:
    model = lively(resnet20())
    structure = find_structure(model, IMAGES)
    small = removed(model, every_second(structure, structure.blocks[:2]), structure)
    difference = Architecture.between(model, small)
    assert difference.removed == structure.blocks[:2]
    again = difference.applied(resnet20())
    again.load_state_dict(small.state_dict())
    assert torch.equal(again.eval()(IMAGES), small(IMAGES))
    assert isinstance(model.get_submodule(structure.blocks[0]), Block)  # the original is as it was


def test_a_difference_of_another_network_is_refused() -> None:
    model = resnet20()
    small = removed(model, Plan(("layer1.2",)), find_structure(model, IMAGES, ["layers"]))
    with pytest.raises(UserError, match="architecture: does not fit ResNet"):
        Architecture.between(model, small).applied(resnet8())


def test_what_tracing_misreads_stays_whole() -> None:
    structure = find_structure(resnet20(), IMAGES)
    assert {group.name for group in structure.groups} == {
        f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)
    }
    assert any("conv1 keeps its 16 channels" in note for note in structure.notes)  # its shortcut pads
    assert structure.blocks == (
        "layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2",
    )  # fmt: skip


def test_a_layer_that_is_called_twice_is_cut_on_both_sides_or_not_at_all() -> None:
    model = lively(Twice())
    structure = find_structure(model, IMAGES)
    for group in structure.groups:
        plan = Plan(units={group.name: (1, 2)})
        torch.testing.assert_close(
            removed(model, plan, structure)(IMAGES), masked(model, plan, structure)(IMAGES)
        )


def test_shared_weights_stay_shared_or_refuse() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    index = torch.arange(4).unsqueeze(1)
    same = [Slice(name, "weight", 1, index) for name in ("a", "b")]
    group = Group("a", "channels", 4, (), tuple(same))
    small = removed(model, Plan(units={"a": (0,)}), Structure((group,)))
    assert small.get_submodule("a").weight is small.get_submodule("b").weight
    assert small.get_submodule("a").weight.shape == (4, 3)  # type: ignore[union-attr]
    other = Group("a", "channels", 4, (), (same[0], Slice("b", "weight", 0, index)))
    with pytest.raises(UserError, match=r"b\.weight is shared, and would be cut in two different ways"):
        removed(copy.deepcopy(model), Plan(units={"a": (0,)}), Structure((other,)))


def test_a_weight_that_another_layer_holds_too_is_not_cut_in_one_place_alone() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)
            self.second.weight = self.first.weight
            self.head = nn.Linear(10, 8)
            self.last = nn.Linear(8, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            both = torch.cat([self.first(inputs), self.second(inputs.flip(1))], dim=1).relu()
            out: Tensor = self.last(self.head(both).relu())
            return out

    structure = find_structure(Tied().eval(), torch.randn(2, 6), ["channels"])
    assert [group.name for group in structure.groups] == ["head"]
    assert any("weight is shared with" in note for note in structure.notes)


def test_channels_that_are_added_go_together_and_grouped_convolutions_stay() -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.shortcut, self.wide = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 3, padding=1)
            self.grouped, self.mix = nn.Conv2d(12, 12, 3, groups=3), nn.Conv2d(12, 6, 1)
            self.head = nn.Linear(6, 2)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.stem(images).relu()
            maps = (maps + self.inner(maps)).relu()
            maps = self.grouped((self.shortcut(maps) + self.wide(maps)).relu())
            out: Tensor = self.head(self.mix(maps).relu().mean(dim=(2, 3)))
            return out

    model = lively(Added())
    structure = find_structure(model, IMAGES, ["channels"])
    assert sorted(group.units for group in structure.groups) == [3, 6, 8]
    residual = next(group for group in structure.groups if group.units == 8)
    assert {piece.module for piece in residual.writers} == {"stem", "inner"}
    assert {piece.module for piece in residual.readers} == {"inner", "shortcut", "wide"}
    plan = every_second(structure)
    with torch.no_grad():
        small, whole = removed(model, plan, structure)(IMAGES), masked(model, plan, structure)(IMAGES)
    torch.testing.assert_close(small, whole, atol=2e-5, rtol=1e-5)
    grouped = structure.group("grouped")
    assert {piece.module for piece in grouped.writers} == {"shortcut", "wide", "grouped"}
    assert {piece.index.shape for piece in grouped.slices} == {(3, 4)}
    left = removed(model, plan, structure).grouped
    assert (left.groups, left.in_channels, left.out_channels) == (1, 4, 4)  # type: ignore[union-attr]
    assert not structure.notes


def test_filters_of_grouped_convolutions_go_with_what_they_read_and_write() -> None:
    """ResNeXt and RegNet: half of the groups of each go, twice, and nothing stays whole."""

    class Bottleneck(nn.Module):
        def __init__(self, expand: int) -> None:
            super().__init__()
            self.enter, self.first = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16)
            self.filters, self.second = nn.Conv2d(16, 16 * expand, 3, groups=4), nn.BatchNorm2d(16 * expand)
            self.leave, self.head = nn.Conv2d(16 * expand, 6, 1), nn.Linear(6, 2)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.first(self.enter(images)).relu()
            maps = self.leave(self.second(self.filters(maps)).relu())
            out: Tensor = self.head(maps.mean(dim=(2, 3)))
            return out

    for expand in (1, 3):
        model = lively(Bottleneck(expand))
        structure = find_structure(model, IMAGES, ["channels"])
        assert {group.name: group.units for group in structure.groups} == {"filters": 4, "leave": 6}
        assert not structure.notes
        plan = every_second(structure)
        with torch.no_grad():
            small, whole = removed(model, plan, structure), masked(model, plan, structure)(IMAGES)
            torch.testing.assert_close(small(IMAGES), whole, atol=2e-5, rtol=1e-5)
        assert small.filters.groups == 2  # type: ignore[union-attr]
        second = structure_after(model, plan, structure)
        assert second.group("filters").units == 2
        smaller, twice = (make(small, every_second(second), second)(IMAGES) for make in (removed, masked))
        torch.testing.assert_close(smaller, twice, atol=2e-5, rtol=1e-5)


def test_one_side_of_a_concatenation_before_a_grouped_convolution_stays() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 7, 1)
            self.grouped, self.mix, self.head = (
                nn.Conv2d(12, 12, 1, groups=3),
                nn.Conv2d(12, 6, 1),
                nn.Linear(6, 2),
            )

        def forward(self, images: Tensor) -> Tensor:
            maps = torch.cat([self.one(images), self.other(images)], dim=1).relu()
            out: Tensor = self.head(self.mix(self.grouped(maps).relu()).mean(dim=(2, 3)))
            return out

    structure = find_structure(lively(Beside()), IMAGES, ["channels"])
    assert [group.name for group in structure.groups] == ["mix"]
    assert len(structure.notes) == 3


def test_channels_that_meet_several_grouped_convolutions_stay() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Conv2d(3, 12, 1)
            self.one, self.other = nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 12, 1, groups=4)
            self.head = nn.Linear(12, 2)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.enter(images).relu()
            out: Tensor = self.head((self.one(maps) + self.other(maps)).relu().mean(dim=(2, 3)))
            return out

    with pytest.raises(
        UserError, match=r"nothing can be removed from Two: .* is a grouped convolution among"
    ):
        find_structure(lively(Two()), IMAGES, ["channels"])


@pytest.mark.parametrize(
    "model",
    [
        StyleGenerator(width=4, blocks=2, kernel=3),
        StyleGenerator(width=4, blocks=2, kernel=3, separable=True),
        UNet(width=4, levels=3),
    ],
    ids=["style", "separable", "unet"],
)
def test_transposed_convolutions_and_instance_norms_lose_channels_exactly(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.InstanceNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    structure = find_structure(model, images, ["channels"])
    assert not structure.notes
    plan = every_second(structure)
    with torch.no_grad():
        small, whole = removed(model, plan, structure), masked(model, plan, structure)(images)
        torch.testing.assert_close(small(images), whole, atol=2e-5, rtol=1e-5)
        assert not torch.allclose(model(images), whole, atol=1e-3)
    for module in small.modules():
        if isinstance(module, nn.ConvTranspose2d):
            assert module.weight.shape[:2] == (module.in_channels, module.out_channels)
    second = structure_after(model, plan, structure)
    smaller, twice = (make(small, every_second(second), second)(images) for make in (removed, masked))
    torch.testing.assert_close(smaller, twice, atol=2e-5, rtol=1e-5)


def test_not_all_units_of_a_group_may_go() -> None:
    model = resnet8().eval()
    structure = find_structure(model, IMAGES)
    with pytest.raises(UserError, match=r"all 16 units of layer1\.0\.conv1 would be removed"):
        removed(model, Plan(units={"layer1.0.conv1": tuple(range(16))}), structure)


def test_a_network_of_which_nothing_can_go_says_so() -> None:
    with pytest.raises(UserError, match=r"prune\.axes: nothing can be removed from Linear"):
        find_structure(nn.Linear(4, 2), torch.zeros(2, 4))
