"""What is chosen: how much is kept over rounds, and a short training that turns a ranking around."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill.models.cifar import resnet8, resnet20
from potstill.prune import PruneConfig, Structure, TargetConfig
from potstill.prune.candidates import choose
from potstill.prune.choice import Chooser
from potstill.prune.family_parts import family_structure
from potstill.prune.gauge import Gauge
from potstill.prune.importance import block_scores, unit_scores
from potstill.prune.store import Scores
from potstill.prune.structure import find_structure
from potstill.prune.surgery import cut, structure_left

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def image_losses(model: nn.Module) -> Iterator[Tensor]:
    yield nn.functional.cross_entropy(model(IMAGES), torch.arange(4), reduction="none")


def chooser(
    model: nn.Module,
    structure: Structure,
    example: Any,
    losses: Any,
    original: Structure | None = None,
    **more: Any,
) -> Chooser:
    target = TargetConfig(macs=0.7)
    scores = Scores(
        unit_scores(model, structure.groups, losses, "magnitude"),
        block_scores(model, structure, losses, "influence"),
    )
    gauge = Gauge.of(target, model, example, lambda _: structure.blocks)
    return Chooser(model, structure, scores, gauge, PruneConfig(target=target, **more), original)


def test_units_that_are_kept_are_a_share_of_the_original_in_every_round() -> None:
    model = resnet8().eval()
    whole = structure = find_structure(model, IMAGES, ["channels"])
    for _ in range(2):
        made = chooser(model, structure, IMAGES, image_losses, whole, keep=0.5)
        plan = made.plan(0, made.most_steps)
        small = cut(model, plan, structure)
        structure = structure_left(model, plan, structure, small, ["channels"])
        model = small
        assert {group.name: group.units for group in structure.groups} == {
            group.name: group.units // 2 for group in whole.groups
        }
    alone = chooser(model, structure, IMAGES, image_losses, keep=0.5)
    assert alone.most_steps > 0  # of what it is now, more may go


def test_layers_and_neurons_of_a_decoder_are_kept_as_well() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=4,
        num_attention_heads=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.tensor([[3, 7, 1, 9], [2, 8, 30, 4]])

    def losses(one: nn.Module) -> Iterator[Tensor]:
        yield one(tokens).logits.pow(2).mean(dim=(1, 2))

    axes = ["layers", "mlp"]
    whole = structure = family_structure(model, axes)  # type: ignore[arg-type]
    for depth, count in ((1, 5), (9, 99)):
        made = chooser(model, structure, {"input_ids": tokens}, losses, whole, keep=0.5)
        plan = made.plan(min(depth, made.most_blocks), min(count, made.most_steps))
        small = cut(model, plan, structure)
        structure = structure_left(model, plan, structure, small, axes)  # type: ignore[arg-type]
        model = small
    assert (model.config.num_hidden_layers, model.config.intermediate_size) == (2, 10)


def test_a_short_training_turns_the_ranking_around() -> None:
    model = resnet20().eval()
    structure = find_structure(model, IMAGES)
    made = chooser(model, structure, IMAGES, image_losses, finalists=2, candidates=3)
    goal = made.gauge.goal
    before = choose(made, goal, image_losses, None)
    assert len(before) >= 3
    assert [one.loss for one in before] == sorted(one.loss for one in before)
    found = choose(made, goal, image_losses, lambda place, _: 1.0 - place)
    assert [one.plan for one in found] == [before[1].plan, before[0].plan, *(one.plan for one in before[2:])]
    assert [one.trial for one in found] == [0.0, 1.0, *[None] * (len(before) - 2)]
    lost = choose(made, goal, image_losses, lambda place, _: 1.0 if place else math.nan)
    assert lost[0].plan == before[1].plan  # one that diverged is not chosen
