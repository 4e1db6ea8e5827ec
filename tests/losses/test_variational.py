"""Variational information against a slow oracle, and what its module learns."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.losses import spec_of, variational_information
from potstill.losses.variational import VariationalInformation

SHAPES = {"maps": (4, 3, 5, 5), "tokens": (4, 6, 3), "vectors": (4, 3)}


def pair(shape: tuple[int, ...], seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return 2 * student, 2 * teacher, torch.rand(3, generator=generator, dtype=torch.float64) + 0.1


def oracle(student: Tensor, teacher: Tensor, variance: list[float]) -> list[float]:
    """Channel by channel; channels come second in maps, else last."""
    if student.dim() != 4:
        student, teacher = student.movedim(-1, 1), teacher.movedim(-1, 1)
    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        total, count = 0.0, 0
        for mean, true, v in zip(ours, theirs, variance, strict=True):
            for a, b in zip(mean.flatten().tolist(), true.flatten().tolist(), strict=True):
                total += 0.5 * ((a - b) ** 2 / v + math.log(v))
                count += 1
        values.append(total / count)
    return values


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_equals_its_oracle(shape: tuple[int, ...]) -> None:
    student, teacher, variance = pair(shape)
    for given_variance, numbers in ((variance, variance.tolist()), (None, [1.0, 1.0, 1.0])):
        expected = torch.tensor(oracle(student, teacher, numbers), dtype=torch.float64)
        values = variational_information(student, teacher, variance=given_variance)
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


def test_golden_number() -> None:
    student, teacher = torch.tensor([[3.0, 1.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    # ((3 - 1)^2 / 4 + ln 4 + 0 + ln(1/2)) / 2 / 2 = (1 + ln 2) / 4
    value = float(variational_information(student, teacher, variance=torch.tensor([4.0, 0.5]).double()))
    assert value == pytest.approx((1 + math.log(2)) / 4, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_the_mean_square_is_the_best_variance(seed: int) -> None:
    student, teacher, _ = pair(SHAPES["maps"], seed)
    best = (student - teacher).square().mean(dim=(0, 2, 3))
    values = [
        float(variational_information(student, teacher, variance=best * scale).mean())
        for scale in (0.8, 1.0, 1.25)
    ]
    assert values[1] < min(values[0], values[2])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_scaling_both_sides_and_the_spread_adds_its_logarithm(seed: int, scale: float) -> None:
    student, teacher, variance = pair(SHAPES["maps"], seed)
    value = variational_information(student, teacher, variance=variance)
    scaled = variational_information(student * scale, teacher * scale, variance=variance * scale**2)
    torch.testing.assert_close(scaled, value + math.log(scale))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 4, 4\) and \(2, 5, 4, 4\)"):
        variational_information(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4))
    with pytest.raises(ValueError, match=r"variance: expected one a channel, \(3,\), got \(4,\)"):
        variational_information(torch.ones(2, 3), torch.ones(2, 3), variance=torch.ones(4))
    with pytest.raises(ValueError, match=r"one kind .* student \(2, 3, 4, 4\) and teacher \(2, 3\)"):
        VariationalInformation((2, 3, 4, 4), (2, 3))
    with pytest.raises(ValueError, match=r"as many tokens.* \(2, 3, 8\) and teacher \(2, 4, 8\)"):
        VariationalInformation((2, 3, 8), (2, 4, 8))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [((4, 3, 8, 8), (4, 5, 4, 4)), ((4, 3, 4, 4), (4, 5, 8, 8)), ((4, 6, 3), (4, 6, 5)), ((4, 3), (4, 5))],
)
def test_the_module_starts_at_the_authors_variance_and_calls_the_function(
    ours: tuple[int, ...], theirs: tuple[int, ...]
) -> None:
    module = VariationalInformation(ours, theirs)
    student, teacher = torch.randn(ours), torch.randn(theirs)
    torch.testing.assert_close(module.variance, torch.full((5,), 5.0))
    values = module(student, teacher)
    assert values.shape == (4,)
    values.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    if len(ours) == 2:
        expected = variational_information(module.mean(student), teacher, variance=module.variance)
        assert torch.equal(values, expected)


def test_mean_and_variance_are_learnt() -> None:
    torch.manual_seed(0)
    student = torch.randn(64, 4, 3, 3)
    noise = torch.tensor([0.1, 1.0]).reshape(2, 1, 1)
    teacher = student[:, :2].relu() + noise * torch.randn(64, 2, 3, 3)
    module = VariationalInformation(student.shape, teacher.shape)
    before = float(module(student, teacher).mean().detach())
    optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
    for _ in range(400):
        optimizer.zero_grad()
        module(student, teacher).mean().backward()
        optimizer.step()
    left = (module.mean(student).detach() - teacher).square().mean(dim=(0, 2, 3))
    torch.testing.assert_close(module.variance, left, rtol=0.2, atol=0.0)
    assert float(left[0]) < float(left[1])
    assert float(module(student, teacher).mean().detach()) < before - 0.5


def test_masked_samples_reach_neither_value_nor_gradient() -> None:
    module = VariationalInformation((3, 2, 4, 4), (3, 3, 4, 4))
    student, teacher = torch.randn(3, 2, 4, 4), torch.randn(3, 3, 4, 4)
    where = torch.tensor([True, False, True])
    expected = module(student[where], teacher[where])
    student[1], teacher[1] = torch.nan, torch.inf
    values = module(student, teacher, where=where)
    torch.testing.assert_close(values[where], expected)
    assert float(values[1].detach()) == 0.0
    values.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_module_bears_half_precision(dtype: torch.dtype) -> None:
    module = VariationalInformation((2, 3, 4, 4), (2, 5, 4, 4))
    student, teacher = (300 * torch.rand(2, c, 4, 4).to(dtype) for c in (3, 5))
    values = module(student, teacher)
    assert values.dtype == torch.float32
    assert bool(torch.isfinite(values).all())


def test_it_is_declared_with_its_module() -> None:
    assert spec_of(variational_information).learns is VariationalInformation
