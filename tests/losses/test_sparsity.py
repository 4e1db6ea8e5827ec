"""Losses of activation patterns against slow oracles in plain Python floats."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.losses import activation_boundary, activation_pattern
from potstill.losses.sparsity import pattern_agreement


def pair(shape: tuple[int, ...] = (4, 3, 5, 5), seed: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return 2 * student, 2 * teacher


def neurons(student: Tensor, teacher: Tensor) -> list[list[tuple[float, float]]]:
    rows = zip(student.flatten(1).tolist(), teacher.flatten(1).tolist(), strict=True)
    return [list(zip(s, t, strict=True)) for s, t in rows]


def boundary_oracle(student: Tensor, teacher: Tensor, margin: float) -> list[float]:
    values = []
    for sample in neurons(student, teacher):
        total = 0.0
        for s, t in sample:
            if s > -margin and t <= 0:
                total += (s + margin) ** 2
            if s <= margin and t > 0:
                total += (s - margin) ** 2
        values.append(total)
    return values


def pattern_oracle(student: Tensor, teacher: Tensor, sharpness: float) -> list[float]:
    values = []
    for sample in neurons(student, teacher):
        total = 0.0
        for s, t in sample:
            on = 1 / (1 + math.exp(-sharpness * s))
            total -= math.log(on if t > 0 else 1 - on)
        values.append(total / len(sample))
    return values


@pytest.mark.parametrize("margin", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 6), (4, 3, 6)])
def test_activation_boundary_equals_its_oracle(margin: float, shape: tuple[int, ...]) -> None:
    student, teacher = pair(shape)
    expected = torch.tensor(boundary_oracle(student, teacher, margin), dtype=torch.float64)
    torch.testing.assert_close(
        activation_boundary(student, teacher, margin=margin), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("sharpness", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 6), (4, 3, 6)])
def test_activation_pattern_equals_its_oracle(sharpness: float, shape: tuple[int, ...]) -> None:
    student, teacher = pair(shape)
    expected = torch.tensor(pattern_oracle(student, teacher, sharpness), dtype=torch.float64)
    torch.testing.assert_close(
        activation_pattern(student, teacher, sharpness=sharpness), expected, rtol=1e-10, atol=1e-12
    )


def test_golden_numbers() -> None:
    student = torch.tensor([[0.5, 0.5, -3.0, 2.0]], dtype=torch.float64)
    teacher = torch.tensor([[9.0, -9.0, 1.0, 0.1]], dtype=torch.float64)
    # (1/2 - 1)^2 + (1/2 + 1)^2 + (-3 - 1)^2 + nothing, as 2 is beyond the margin
    assert float(activation_boundary(student, teacher)) == pytest.approx(18.5, rel=1e-12)
    # margin 3: (1/2 - 3)^2 + (1/2 + 3)^2 + (-3 - 3)^2 + (2 - 3)^2
    assert float(activation_boundary(student, teacher, margin=3.0)) == pytest.approx(55.5, rel=1e-12)
    # sigmoid(ln 3) = 3/4, said right and wrong: (ln(4/3) + ln 4) / 2
    student, teacher = torch.full((1, 2), math.log(3), dtype=torch.float64), torch.tensor([[1.0, -1.0]])
    expected = (math.log(4 / 3) + math.log(4)) / 2
    assert float(activation_pattern(student, teacher)) == pytest.approx(expected, rel=1e-12)


def test_one_map_at_equality_already_costs_what_the_margin_says() -> None:
    maps = torch.zeros(1, 16, 32, 32)
    assert float(activation_boundary(maps, maps)) == 16 * 32 * 32


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_only_the_teachers_sign_counts(seed: int, scale: float) -> None:
    student, teacher = pair(seed=seed)
    for loss in (activation_boundary, activation_pattern, pattern_agreement):
        assert torch.equal(loss(student, teacher * scale), loss(student, teacher))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_boundary_grows_as_the_square_of_scale_and_margin(seed: int, scale: float) -> None:
    student, teacher = pair(seed=seed)
    scaled = activation_boundary(student * scale, teacher, margin=scale)
    torch.testing.assert_close(scaled, activation_boundary(student, teacher) * scale**2)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_a_student_beyond_the_margin_on_the_teachers_side_costs_nothing(seed: int) -> None:
    _, teacher = pair(seed=seed)
    side = torch.where(teacher > 0, 1.0, -1.0).double().requires_grad_()
    value = activation_boundary(1.5 * side, teacher)
    value.sum().backward()
    assert float(value.detach().abs().max()) == 0.0
    assert side.grad is not None
    assert float(side.grad.abs().max()) == 0.0


def test_pattern_agreement_counts_neurons() -> None:
    student, teacher = pair()
    expected = [sum((s > 0) == (t > 0) for s, t in each) / len(each) for each in neurons(student, teacher)]
    torch.testing.assert_close(pattern_agreement(student, teacher), torch.tensor(expected).double())
    assert bool((pattern_agreement(teacher, 5 * teacher) == 1).all())


@pytest.mark.parametrize("loss", [activation_boundary, activation_pattern, pattern_agreement])
def test_shapes_that_differ_are_named(loss: object) -> None:
    with pytest.raises(ValueError, match=r"one shape.*\(2, 3, 4, 4\) and \(2, 5, 4, 4\)"):
        loss(torch.ones(2, 3, 4, 4), torch.ones(2, 5, 4, 4))  # type: ignore[operator]
