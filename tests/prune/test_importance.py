"""Scores against slow oracles, golden numbers, and what they are kept under."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.errors import UserError
from potstill.models.cifar import resnet8
from potstill.prune import Plan, find_structure, removed
from potstill.prune.importance import BLOCK_KINDS, UNIT_KINDS, block_scores, mean_loss, unit_scores
from potstill.prune.settling import settled
from potstill.prune.store import Scores, stored

INPUTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1, 1, 0])


class Small(nn.Module):
    """Three hidden neurons; in the second form they are channels of 2x2 maps."""

    def __init__(self, maps: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.maps = maps
        self.first = nn.Conv2d(3, 3, 1) if maps else nn.Linear(3, 3)
        self.second = nn.Linear(12 if maps else 3, 2)

    def images(self) -> Tensor:
        grid = torch.tensor([[1.0, -0.5], [0.25, 2.0]])
        return INPUTS[:, :, None, None] * grid if self.maps else INPUTS

    def forward(self, inputs: Tensor, gate: Tensor | None = None) -> Tensor:
        hidden = self.first(inputs).relu()
        if gate is not None:
            hidden = hidden * (gate[:, None, None] if self.maps else gate)
        out: Tensor = self.second(hidden.flatten(1))
        return out


def calibration(images: Tensor, labels: Tensor = LABELS, size: int = 4) -> object:
    def losses(model: nn.Module) -> Iterator[Tensor]:
        for begin in range(0, len(images), size):
            some = slice(begin, begin + size)
            yield cross_entropy(model(images[some]), labels[some], reduction="none")

    return losses


@pytest.mark.parametrize("maps", [False, True], ids=["neurons", "channels"])
def test_scores_are_those_of_slow_oracles(maps: bool) -> None:
    model = Small(maps)
    images = model.images()
    (group,) = find_structure(model, images[:2]).groups
    losses = calibration(images)
    found = {kind: unit_scores(model, [group], losses, kind)["first"] for kind in UNIT_KINDS}  # type: ignore[arg-type]
    taylor = torch.zeros(3, dtype=torch.float64)
    for row, label in zip(images, LABELS, strict=True):
        gate = torch.ones(3, requires_grad=True)
        cross_entropy(model(row[None], gate), label[None]).backward()
        assert gate.grad is not None
        taylor += gate.grad.double() ** 2 / 6
    torch.testing.assert_close(found["taylor"], taylor, rtol=1e-5, atol=1e-9)
    hidden = model.first(images).relu().detach().double()
    means = hidden.flatten(2).mean(dim=2) if maps else hidden
    flattened = 4 if maps else 1  # a channel is as many inputs of the second layer
    activation = (means * flattened if maps else means).pow(2).mean(dim=0).sqrt()
    norms = model.second.weight.detach().double().reshape(2, 3, -1).pow(2).sum(dim=(0, 2))
    into = model.first.weight.detach().double().reshape(3, -1).pow(2).sum(dim=1)
    for kind, raw in {
        "activation": activation,
        "activation_weight": activation * norms.sqrt(),
        "magnitude": (norms + into).sqrt(),
    }.items():
        if kind != "magnitude":
            raw = raw if kind == "activation" else activation / activation.mean() * norms.sqrt()
        torch.testing.assert_close(found[kind], raw / raw.mean(), rtol=1e-5, atol=1e-9)


def test_golden_numbers() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        model[2].weight.copy_(torch.tensor([[12.0, 0.0]]))
    (group,) = find_structure(model, torch.ones(2, 2)).groups

    def losses(network: nn.Module) -> Iterator[Tensor]:
        yield network(torch.tensor([[1.0, 1.0]]))[:, 0]  # the loss is the output: 12 x 7

    def score(kind: str) -> list[float]:
        return unit_scores(model, [group], losses, kind)["0"].tolist()  # type: ignore[arg-type]

    assert score("taylor") == pytest.approx([84.0**2, 0.0])
    assert score("magnitude") == pytest.approx([13 / 7, 1 / 7])
    assert score("activation") == pytest.approx([7 / 4, 1 / 4])
    assert score("activation_weight") == pytest.approx([2.0, 0.0])


def test_blocks_are_scored_by_what_their_absence_costs_and_by_what_they_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3)), nn.Linear(3, 2))
    with torch.no_grad():
        model[1][0].weight.copy_(0.01 * torch.eye(3))
        model[1][0].bias.zero_()  # shrinks what enters, and turns it hardly
    structure = find_structure(model, INPUTS[:2], ["layers"])
    assert structure.blocks == ("0", "1", "2")
    losses = calibration(INPUTS)
    found = block_scores(model, structure, losses)  # type: ignore[arg-type]
    for block in structure.blocks:
        without = removed(model, Plan((block,)), structure)
        assert found[block] == pytest.approx(float(cross_entropy(without(INPUTS), LABELS).detach()), abs=1e-6)
    influence = block_scores(model, structure, losses, "influence")  # type: ignore[arg-type]
    entering = model[0](INPUTS).detach()
    cosine = torch.nn.functional.cosine_similarity(entering, model[1](entering).detach(), dim=1)
    assert influence["1"] == pytest.approx(float((1 - cosine).mean()), abs=1e-6)
    assert influence["1"] == min(influence.values()) < 1e-3
    ranks = block_scores(model, structure, losses, "greedy")  # type: ignore[arg-type]
    first = min(found, key=found.__getitem__)
    assert sorted(ranks.values()) == [0, 1, 2]
    assert ranks[first] == 0
    second = min(
        (block for block in structure.blocks if block != first),
        key=lambda block: mean_loss(removed(model, Plan((first, block)), structure), losses),  # type: ignore[arg-type]
    )
    assert ranks[second] == 1


@pytest.mark.parametrize("kind", UNIT_KINDS)
def test_half_precision_does_not_overflow(kind: str) -> None:
    model = Small(maps=False).half()
    with torch.no_grad():
        model.first.weight.fill_(200.0)
    images = INPUTS.abs() * 100  # activations of tens of thousands, whose squares are infinite in float16
    (group,) = find_structure(model, images[:2]).groups
    scores = unit_scores(model, [group], calibration(images), kind)["first"]  # type: ignore[arg-type]
    assert bool(torch.isfinite(scores).all())
    with torch.no_grad():
        model.first.weight[0] = float("inf")
    with pytest.raises(UserError, match=r"prune\.importance: the \w+ scores of first are not finite"):
        unit_scores(model, [group], calibration(images), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_blocks_without_a_finite_score_are_named(kind: str) -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(3, 3), nn.Tanh()) for _ in range(3)), nn.Linear(3, 2))
    structure = find_structure(model, INPUTS[:2], ["layers"])
    with torch.no_grad():
        model[1][0].weight[0] = float("nan")
    with pytest.raises(UserError, match=rf"prune\.layer_importance: the {kind} score of \d is not finite"):
        block_scores(model, structure, calibration(INPUTS), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", UNIT_KINDS)
def test_without_units_there_is_nothing_to_score(kind: str) -> None:
    assert unit_scores(Small(maps=False), [], calibration(INPUTS), kind) == {}  # type: ignore[arg-type]


def test_scoring_leaves_the_network_alone() -> None:
    model = resnet8().train()
    images = torch.randn(4, 3, 8, 8)
    structure = find_structure(model, images)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unit_scores(model, structure.groups, calibration(images, LABELS[:4]))  # type: ignore[arg-type]
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_scores_are_computed_once_for_what_they_depend_on(tmp_path: Path) -> None:
    made: list[int] = []

    def compute() -> Scores:
        made.append(1)
        return Scores({"conv": torch.arange(3.0).double()}, {"layer1.0": 0.5})

    for key in ({"model": "a"}, {"model": "a"}, {"model": "b"}):
        scores = stored(tmp_path, key, compute)
        assert scores.units["conv"].tolist() == [0, 1, 2]
        assert scores.blocks == {"layer1.0": 0.5}
    assert len(made) == 2
    for path in tmp_path.iterdir():
        path.write_bytes(b"torn")
    stored(tmp_path, {"model": "a"}, compute)
    assert len(made) == 3


def test_statistics_settle_on_the_calibration_batches() -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(nn.Conv2d(2, 3, 1), norm, nn.Flatten(), nn.Linear(12, 2))
    batches = [torch.randn(4, 2, 2, 2) for _ in range(3)]

    def losses(model: nn.Module) -> Iterator[Tensor]:
        return (model(batch).sum(dim=1) for batch in batches)

    settled(net, losses)
    assert not net.training
    assert norm.momentum == 0.1
    with torch.no_grad():
        maps = [net[0](batch).movedim(1, 0).flatten(1) for batch in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([one.mean(dim=1) for one in maps]).mean(dim=0))
    torch.testing.assert_close(norm.running_var, torch.stack([one.var(dim=1) for one in maps]).mean(dim=0))
