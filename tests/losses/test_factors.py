"""Factor transfer against a slow oracle, and what its two modules learn."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from potstill.losses import factor_transfer, spec_of
from potstill.losses.factors import FactorTransfer, Paraphraser


def pair(seed: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return 2 * student, 2 * teacher


def direction(maps: Tensor) -> list[float]:
    numbers = maps.flatten().tolist()
    length = math.sqrt(sum(x * x for x in numbers))
    return [x / length for x in numbers]


def test_it_equals_its_oracle() -> None:
    student, teacher = pair()
    expected = []
    for ours, theirs in zip(student, teacher, strict=True):
        differences = [abs(a - b) for a, b in zip(direction(ours), direction(theirs), strict=True)]
        expected.append(sum(differences) / len(differences))
    values = factor_transfer(student, teacher)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_golden_number() -> None:
    student, teacher = torch.tensor([[[[3.0, 4.0]]]]).double(), torch.tensor([[[[2.0, 0.0]]]]).double()
    # (|3/5 - 1| + |4/5 - 0|) / 2
    assert float(factor_transfer(student, teacher)) == pytest.approx(0.6, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_positive_scale_of_either_does_not_count(seed: int, one: float, other: float) -> None:
    student, teacher = pair(seed)
    value = factor_transfer(student, teacher)
    torch.testing.assert_close(factor_transfer(student * one, teacher * other), value)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(3)))
def test_channels_are_not_averaged_away(seed: int, order: list[int]) -> None:
    student, teacher = pair(seed)
    turned = student[:, torch.tensor(order)], teacher[:, torch.tensor(order)]
    torch.testing.assert_close(factor_transfer(*turned), factor_transfer(student, teacher))
    assert bool((factor_transfer(student, student.flip(1)) > 0).all())


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"student \(2, 3, 4, 4\) and teacher \(2, 5, 4, 4\)"):
        factor_transfer(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4))


@pytest.mark.parametrize(("rate", "factors"), [(0.5, 4), (0.75, 6), (1.0, 8), (0.01, 1)])
def test_the_rate_sets_the_channels_of_the_factors(rate: float, factors: int) -> None:
    module = FactorTransfer((2, 3, 8, 8), (2, 8, 4, 4), rate=rate)
    assert module.translator(torch.randn(2, 3, 8, 8)).shape == (2, factors, 8, 8)
    assert module.paraphraser.encoder(torch.randn(2, 8, 4, 4)).shape == (2, factors, 4, 4)


@pytest.mark.parametrize("sizes", [(8, 4), (4, 8), (4, 4)])
def test_the_translator_learns_and_the_paraphraser_does_not(sizes: tuple[int, int]) -> None:
    module = FactorTransfer((3, 2, sizes[0], sizes[0]), (3, 6, sizes[1], sizes[1]))
    student, teacher = torch.randn(3, 2, sizes[0], sizes[0]), torch.randn(3, 6, sizes[1], sizes[1])
    student.requires_grad_()
    module(student, teacher).sum().backward()
    assert student.grad is not None
    assert student.grad.any()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    assert all(p.grad is None for p in module.paraphraser.parameters())


def test_the_paraphraser_is_no_part_of_it_but_moves_and_is_copied_with_it() -> None:
    module = FactorTransfer((2, 3, 4, 4), (2, 8, 4, 4))
    assert {name.split(".")[0] for name in module.state_dict()} == {"translator"}
    assert {name.split(".")[0] for name, _ in module.named_modules() if name} == {"translator"}
    other = copy.deepcopy(nn.ModuleList([module, module.paraphraser])).double()
    assert other[0].paraphraser is other[1]
    assert other[0].paraphraser is not module.paraphraser
    assert {p.dtype for p in other[0].paraphraser.parameters()} == {torch.float64}
    assert other[0](torch.randn(2, 3, 4, 4), torch.randn(2, 8, 4, 4)).dtype == torch.float64


def test_the_paraphraser_learns_to_reconstruct() -> None:
    torch.manual_seed(0)
    maps = torch.randn(16, 2, 6, 6).repeat(1, 4, 1, 1).relu()  # eight channels that say what two say
    paraphraser = Paraphraser(8, 4)
    assert paraphraser(maps).shape == (16,)
    optimizer = torch.optim.SGD(paraphraser.parameters(), lr=0.1, momentum=0.9)
    values = []
    for _ in range(60):
        loss = paraphraser(maps).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    constant = float((maps - maps.mean(dim=(0, 2, 3), keepdim=True)).square().mean())
    assert values[-1] < 0.6 * constant < values[0]


def test_values_depend_on_their_own_sample_alone() -> None:
    module = FactorTransfer((4, 2, 4, 4), (4, 6, 4, 4))
    student, teacher = torch.randn(4, 2, 4, 4), torch.randn(4, 6, 4, 4)
    where = torch.tensor([True, False, True, True])
    subset = module(student[where], teacher[where]), module.paraphraser(teacher[where])
    student[1], teacher[1] = torch.nan, torch.inf
    whole = module(student, teacher, where=where), module.paraphraser(teacher, where=where)
    for values, expected in zip(whole, subset, strict=True):
        torch.testing.assert_close(values[where], expected)
        assert float(values[1].detach()) == 0.0
        values.sum().backward()
    parameters = [*module.parameters(), *module.paraphraser.parameters()]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in parameters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 300.0])
def test_the_modules_bear_half_precision_and_maps_of_zeros(dtype: torch.dtype, scale: float) -> None:
    module = FactorTransfer((2, 3, 4, 4), (2, 8, 4, 4))
    student, teacher = (scale * torch.rand(2, c, 4, 4).to(dtype) for c in (3, 8))
    for values in (module(student, teacher), module.paraphraser(teacher)):
        assert values.dtype == torch.float32
        assert bool(torch.isfinite(values).all())
        values.sum().backward()
    parameters = [*module.parameters(), *module.paraphraser.parameters()]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in parameters)


def test_it_is_declared_with_its_module() -> None:
    assert spec_of(factor_transfer).learns is FactorTransfer
