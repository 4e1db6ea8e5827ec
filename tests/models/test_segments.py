"""A network in segments answers as the whole, whatever samples are taken out on the way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from potstill.models.cifar import resnet8
from potstill.models.segments import Segments, cut


class Maths(nn.Module):
    """A network with a forward pass of its own making."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.last(getattr(self, self.how)(inputs))
        return logits

    def sizes(self, inputs: Tensor) -> Tensor:
        """The number of samples, looked up before the cut and used after it; a list of chunks."""
        count = inputs.shape[0]
        hidden = self.first(inputs)
        left, right = torch.chunk(hidden, 2, dim=1)
        both = torch.cat([left.reshape(count, -1), right + 1], dim=1)
        return self.second(hidden) + both.reshape(count * 2, 2).reshape(count, 4)

    def skip(self, inputs: Tensor) -> Tensor:
        """A shortcut around the cut, turned, and a table that is the same for all samples."""
        turned = inputs.t()
        table = torch.arange(4, dtype=torch.float32) * 2
        return self.second(self.first(inputs)) + turned.t() + table

    def folded(self, inputs: Tensor) -> Tensor:
        """A shortcut whose first axis is not the samples."""
        folded = inputs.reshape(inputs.shape[0] * 2, 2)
        return self.second(self.first(inputs)) + folded.reshape(-1, 4)

    def control(self, inputs: Tensor) -> Tensor:
        """Data decides what is computed."""
        hidden = self.first(inputs)
        return hidden if hidden.sum() > 0 else self.second(hidden)

    def mixed(self, inputs: Tensor) -> Tensor:
        """Samples look at each other."""
        hidden = self.first(inputs)
        return self.second(hidden - hidden.mean(dim=0))

    def swapped(self, inputs: Tensor) -> Tensor:
        """The second layer before the first."""
        return self.first(self.second(inputs))


def run(segments: Segments, inputs: Tensor, kept: list[Tensor]) -> Tensor:
    """Run all segments, only the samples ``kept[k]`` (positions among those left) going on after each."""
    needed: tuple[Tensor, ...] = (inputs,)
    for number, part in enumerate(segments.parts):
        output, *rest = part(*needed)
        if number < len(kept):
            needed = segments.keep(number, rest, kept[number])
    result: Tensor = output
    return result


def trained() -> nn.Module:
    """A ResNet-8 whose batch norms have statistics and weights of their own."""
    torch.manual_seed(0)
    model = resnet8()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for _ in range(3):
            model(torch.randn(16, 3, 32, 32) + 0.5)
    return model


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("paths", [["layer1"], ["layer1.0.conv1", "layer2", "layer3.0.bn1"]])
def test_a_resnet_in_segments(paths: list[str], quick: bool) -> None:
    model = trained()
    segments = cut(model, paths, torch.randn(1, 3, 32, 32), quick=quick)
    assert segments.reason == ""
    assert model.training
    images = torch.randn(9, 3, 32, 32)
    model.eval()
    with torch.no_grad():
        whole = model(images)
        everything = [torch.arange(9)] * len(paths)
        torch.testing.assert_close(run(segments, images, everything), whole, rtol=1e-5, atol=1e-5)
        few = [torch.tensor([1, 4, 8]), torch.tensor([0, 2]), torch.tensor([1])][: len(paths)]
        rows = torch.arange(9)
        for kept in few:
            rows = rows[kept]
        torch.testing.assert_close(run(segments, images, few), whole[rows], rtol=1e-5, atol=1e-5)
        first = segments.parts[0](images)[0]
    store: list[Tensor] = []
    handle = model.get_submodule(paths[0]).register_forward_hook(lambda _m, _a, out: store.append(out))
    model(images)
    handle.remove()
    torch.testing.assert_close(first, store[0], rtol=1e-5, atol=1e-5)


def test_the_weights_are_shared() -> None:
    model = resnet8()
    segments = cut(model, ["layer1"], torch.randn(2, 3, 32, 32))
    mine = {id(parameter) for parameter in model.parameters()}
    theirs = {id(parameter) for part in segments.parts for parameter in part.parameters()}
    assert theirs == mine


def test_quick_segments_have_no_batch_norm_and_leave_the_network_as_it_was() -> None:
    model = trained().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    segments = cut(model, ["layer2"], torch.randn(2, 3, 32, 32), quick=True)
    targets = [str(node.target) for part in segments.parts for node in part.graph.nodes]  # type: ignore[union-attr]
    assert not any("batch_norm" in target for target in targets)
    assert sum("relu_" in target for target in targets) == 7
    assert sum("add_" in target for target in targets) == 3
    inputs = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        everything = [torch.arange(5)]
        once, again = (run(segments, inputs, everything) for _ in range(2))
    assert torch.equal(once, again)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_batch_norm_after_a_cut_is_not_folded_into_what_comes_before() -> None:
    model = trained().eval()
    segments = cut(model, ["layer2.0.conv1"], torch.randn(2, 3, 32, 32), quick=True)
    targets = [str(node.target) for part in segments.parts for node in part.graph.nodes]  # type: ignore[union-attr]
    assert sum("batch_norm" in target for target in targets) == 1


@pytest.mark.parametrize(("how", "axes"), [("sizes", {0}), ("skip", {0, 1, None})])
def test_what_goes_across_a_cut(how: str, axes: set[int | None]) -> None:
    torch.manual_seed(0)
    model = Maths(how).eval()
    segments = cut(model, ["first"], torch.randn(3, 4))
    assert segments.reason == ""
    assert set(segments.axes[0]) <= axes
    inputs = torch.randn(7, 4)
    kept = torch.tensor([2, 3, 6])
    with torch.no_grad():
        torch.testing.assert_close(run(segments, inputs, [kept]), model(inputs[kept]))


@pytest.mark.parametrize(
    ("how", "paths", "reason"),
    [
        ("control", ["first"], "cannot be traced (GuardOnDataDependent"),
        ("folded", ["first"], "its samples not along one axis"),
        ("mixed", ["first"], "in segments it answers otherwise with samples taken out"),
        ("swapped", ["first", "second"], "not computed in the order of the cuts"),
    ],
)
def test_what_cannot_be_cut_says_why(
    how: str, paths: list[str], reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    segments = cut(Maths(how), paths, torch.randn(3, 4))
    assert segments.parts == ()
    assert reason in segments.reason
    assert capfd.readouterr() == ("", "")
