"""Masks of weights: which, by slow oracles, and that they stay through training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.prune import Plan, find_structure, removed
from potstill.prune.masks import hold, nonzero, weight_masks

INPUTS = torch.randn(10, 4, 5, 5, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


def losses(model: nn.Module) -> Iterator[Tensor]:
    for some in INPUTS.split(4):
        yield model(some).pow(2).mean(dim=1)


def test_a_share_of_the_smallest_goes() -> None:
    model = network()
    masks = weight_masks(model, 0.5)
    assert set(masks) == {"0.weight", "4.weight"}
    for name, mask in masks.items():
        weight = dict(model.named_parameters())[name].detach().abs()
        assert int(mask.sum()) == mask.numel() // 2
        assert float(weight[~mask].max()) <= float(weight[mask].min())


def test_by_input_each_row_loses_what_contributes_least() -> None:
    model = network()
    masks = weight_masks(model, 0.25, losses, "input")
    hidden = model[:4](INPUTS).detach()  # type: ignore[index]
    for name, inputs in (("0.weight", INPUTS.transpose(0, 1).flatten(1)), ("4.weight", hidden.T)):
        weight = dict(model.named_parameters())[name].detach()
        norms = inputs.norm(dim=1)
        for row in range(len(weight)):
            scores = [
                (abs(float(value)) * float(norms[channel]), channel, place)
                for channel in range(weight.shape[1])
                for place, value in enumerate(weight[row, channel].reshape(-1))
            ]
            gone = {(channel, place) for _, channel, place in sorted(scores)[: len(scores) // 4]}
            mask = masks[name][row].reshape(weight.shape[1], -1)
            assert {(int(a), int(b)) for a, b in (~mask).nonzero()} == gone


@pytest.mark.parametrize("kind", ["magnitude", "input"])
def test_two_of_every_four_inputs_stay(kind: Any) -> None:
    model = network()
    masks = weight_masks(model, "2:4", losses, kind)
    convolution, linear = masks["0.weight"], masks["4.weight"]
    assert torch.equal(convolution.sum(dim=1), torch.full((8, 3, 3), 2))
    assert torch.equal(linear.reshape(4, 2, 4).sum(dim=2), torch.full((4, 2), 2))
    if kind == "magnitude":
        best = model[4].weight.detach().abs().reshape(4, 2, 4).topk(2, dim=2).indices  # type: ignore[index,union-attr]
        assert bool(linear.reshape(4, 2, 4).gather(2, best).all())


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.SGD(
            model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=0.01
        ),
        lambda model: torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1),
    ],
    ids=["sgd", "adamw"],
)
def test_zeros_stay_through_training_until_they_are_let_go(make: Any) -> None:
    model = network()
    masks = weight_masks(model, 0.5)
    handles = hold(model, masks)
    optimizer = make(model)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    def train() -> None:
        for _ in range(5):
            optimizer.zero_grad()
            (model(INPUTS) - 1).pow(2).mean().backward()
            optimizer.step()

    train()
    for name, tensor in model.named_parameters():
        if name in masks:
            assert not tensor[~masks[name]].any()
            assert not torch.equal(tensor, before[name])
    for handle in handles:
        handle.remove()
    train()
    assert all(bool(model.get_parameter(name)[~mask].any()) for name, mask in masks.items())


def test_a_masked_and_a_small_network_lose_the_same_through_training() -> None:
    model = network()
    structure = find_structure(model, INPUTS, ["channels"])
    plan = Plan(units={"0": (1, 4, 5)})
    masks = {
        piece.path: torch.ones_like(model.get_parameter(piece.path), dtype=torch.bool).index_fill_(
            piece.dim, piece.positions(plan.units["0"]), False
        )
        for piece in structure.group("0").slices
    }
    small = removed(model, plan, structure)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    hold(model, masks)
    curves = []
    for one in (model, small):
        optimizer = torch.optim.AdamW(one.parameters(), 0.01)
        values = []
        for _ in range(5):
            loss = torch.cat(list(losses(one))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(float(loss.detach()))
        curves.append(values)
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert curves[0][-1] < curves[0][0]


def test_a_language_models_output_layer_stays_whole() -> None:
    pytest.importorskip("transformers")
    from potstill.models.characters import tiny_llama

    model = tiny_llama(11, layers=1, hidden=16, heads=2)
    masks = weight_masks(model, "2:4")
    assert len(masks) == 7  # of attention and the feed-forward part
    hold(model, masks)
    assert model.get_input_embeddings().weight[1:].count_nonzero() == 10 * 16  # the first is padding
    zeros = nonzero(model)
    assert masks.keys() == zeros.keys()
    assert all(torch.equal(masks[name], zeros[name]) for name in masks)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (1.5, r"prune\.weights: expected a share above 0 and below 1, or N:M.*, got 1\.5"),
        ("4:2", "prune.weights: expected a share above 0 and below 1, or N:M.*, got '4:2'"),
        ("half", "or N:M such as 2:4, got 'half'"),
        ("2:3", r"0\.weight has 4 inputs, no multiple of 3"),
    ],
)
def test_patterns_that_make_no_sense_are_refused(pattern: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        weight_masks(network(), pattern)
