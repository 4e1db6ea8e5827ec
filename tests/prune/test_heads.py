"""Heads of image transformers: what goes, how it is scored, and that the rest is built again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from potstill import measure
from potstill.errors import UserError
from potstill.models.architecture import Architecture
from potstill.models.heads import FewerHeads
from potstill.prune import Plan, find_structure, masked, removed
from potstill.prune.importance import unit_scores

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def torchvision_vit() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    made: nn.Module = models.VisionTransformer(16, 8, 2, 4, 32, 48, num_classes=5)
    nn.init.normal_(made.heads.head.weight, std=0.2)  # type: ignore[union-attr,arg-type]
    return made.eval()


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm.models.vision_transformer")
    torch.manual_seed(0)
    made: nn.Module = timm.VisionTransformer(16, 8, num_classes=5, embed_dim=32, depth=2, num_heads=4)
    return made.eval()


def losses(model: nn.Module) -> Iterator[Tensor]:
    for some in IMAGES.split(2):
        yield model(some).pow(2).mean(dim=1)


@pytest.mark.parametrize("make", [torchvision_vit, timm_vit])
def test_heads_that_go_are_as_good_as_masked(make: Any) -> None:
    model = make()
    structure = find_structure(model, IMAGES[:2], ["heads"])
    assert [group.units for group in structure.groups] == [4, 4]
    first, second = (group.name for group in structure.groups)
    plan = Plan(units={first: (1,), second: (0, 2, 3)})
    small = removed(model, plan, structure).eval()
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES), masked(model, plan, structure)(IMAGES))
        assert not torch.allclose(small(IMAGES), model(IMAGES), atol=1e-4)
    # one head has 8 rows of 32 inputs and a bias in queries, keys and values, and 8 columns of 32 outputs
    assert measure.parameters(model) - measure.parameters(small) == 4 * (3 * 8 * 33 + 8 * 32)
    built = Architecture.between(model, small).applied(make())
    built.load_state_dict(small.state_dict())
    assert torch.equal(built.eval()(IMAGES), small(IMAGES))
    small.train()(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize("make", [torchvision_vit, timm_vit])
def test_a_head_is_scored_by_what_it_says(make: Any) -> None:
    model = make()
    structure = find_structure(model, IMAGES[:2], ["heads"])
    first = structure.groups[0]
    with torch.no_grad():
        for piece in first.readers:  # the second head of the first layer says nothing
            model.get_parameter(piece.path)[:, piece.positions([1])] = 0
    scores = unit_scores(model, structure.groups, losses, "taylor")[first.name]
    assert float(scores[1]) == 0
    assert sorted(scores.tolist())[1] > 0
    small = removed(model, Plan(units={first.name: (1,)}), structure)
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES), model(IMAGES))
    activation = unit_scores(model, structure.groups, losses, "activation")[first.name]
    assert bool((activation > 0).all())
    assert float(activation.mean()) == pytest.approx(1)


def test_attention_with_masks_is_refused_where_heads_are_gone() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    attention.__class__ = FewerHeads
    x = torch.randn(1, 3, 8)
    for given, options in (((x, x.clone(), x), {}), ((x, x, x), {"attn_mask": torch.zeros(3, 3)})):
        with pytest.raises(ValueError, match="self-attention without masks"):
            attention(*given, **options)


def test_neurons_and_heads_of_one_network_go_together() -> None:
    model = torchvision_vit()
    structure = find_structure(model, IMAGES[:2], ["channels", "heads"])
    axes = [group.axis for group in structure.groups]
    assert axes.count("heads") == axes.count("channels") == 2
    plan = Plan(units={group.name: (0, 1) for group in structure.groups})
    small = removed(model, plan, structure).eval()
    with torch.no_grad():
        torch.testing.assert_close(small(IMAGES), masked(model, plan, structure)(IMAGES))


def test_an_axis_of_other_networks_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"prune\.axes: mlp has no meaning for VisionTransformer, which is of"
    ):
        find_structure(torchvision_vit(), IMAGES[:2], ["mlp"])
