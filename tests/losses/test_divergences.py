"""Divergences of probabilities: oracles in plain floats, golden numbers, bounds and limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.losses import divergences, kl, spec_of
from potstill.losses.divergences import (
    generalized_js,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    total_variation,
)

Row = list[float]


def softmax(row: Row, temperature: float) -> Row:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(first: Row, second: Row) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(first, second, strict=True))


def mixed(first: Row, second: Row, share: float) -> Row:
    return [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]


def js(student: Row, teacher: Row, beta: float = 0.5, normalized: bool = False) -> float:
    if beta == 0:
        return divergence(teacher, student)
    if beta == 1:
        return divergence(student, teacher)
    middle = mixed(teacher, student, beta)
    value = beta * divergence(teacher, middle) + (1 - beta) * divergence(student, middle)
    return value / (beta * (1 - beta)) if normalized else value


# Of the student's and the teacher's probabilities.
ORACLES: dict[str, Callable[..., float]] = {
    "reverse_kl": divergence,
    "skew_kl": lambda s, t, skew=0.1: divergence(t, mixed(t, s, skew)),
    "skew_reverse_kl": lambda s, t, skew=0.1: divergence(s, mixed(s, t, skew)),
    "generalized_js": js,
    "total_variation": lambda s, t: max(
        sum(a - b for a, b in zip(s, t, strict=True) if a > b),
        sum(b - a for a, b in zip(s, t, strict=True) if b > a),
    ),
}

CASES: list[tuple[str, float, dict[str, Any]]] = [
    *((name, temperature, {}) for name in ORACLES for temperature in (1.0, 3.0)),
    *((name, 2.0, {"skew": skew}) for name in ("skew_kl", "skew_reverse_kl") for skew in (0.0, 0.6, 1.0)),
    *(("generalized_js", 1.5, {"beta": beta}) for beta in (0.0, 0.2, 0.9, 1.0)),
    *(("generalized_js", 1.5, {"beta": beta, "normalized": True}) for beta in (0.0, 0.2, 0.9, 1.0)),
]


def example(shape: tuple[int, ...] = (4, 6)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return 3 * student, 3 * teacher


@pytest.mark.parametrize(("name", "temperature", "options"), CASES)
def test_a_divergence_equals_its_oracle(name: str, temperature: float, options: dict[str, Any]) -> None:
    student, teacher = example()
    values = getattr(divergences, name)(student, teacher, temperature=temperature, **options)
    factor = 1.0 if name == "generalized_js" else temperature**2
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [
        factor * ORACLES[name](softmax(s, temperature), softmax(t, temperature), **options) for s, t in rows
    ]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-12)


def test_every_divergence_has_an_oracle_and_the_weights_of_kl() -> None:
    assert sorted(ORACLES) == divergences.__all__
    for name in ORACLES:
        spec = spec_of(getattr(divergences, name))
        weak = name in (
            "generalized_js",
            "reverse_kl",
            "skew_reverse_kl",
            "total_variation",
        )  # where the student is far
        assert (spec.weight, spec.labels) == (0.9, 1.0 if weak else 0.1)


# p_t = (3/4, 1/4) and p_s = (1/2, 1/2); their even mixture is (5/8, 3/8).
GOLDEN: list[tuple[str, dict[str, Any], float]] = [
    # 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)
    ("reverse_kl", {}, 0.14384103622589045),
    # 3/4 ln(6/5) + 1/4 ln(2/3)
    ("skew_kl", {"skew": 0.5}, 0.03537489056842485),
    # 1/2 ln(4/5) + 1/2 ln(4/3) = 1/2 ln(16/15)
    ("skew_reverse_kl", {"skew": 0.5}, 0.03226926056878559),
    # half of the sum of the last two
    ("generalized_js", {}, 0.03382207556860522),
    # that over 1/4
    ("generalized_js", {"normalized": True}, 0.13528830227442088),
    # 3/4 ln(3/2) + 1/4 ln(1/2)
    ("generalized_js", {"beta": 0.0}, 0.13081203594113694),
    ("generalized_js", {"beta": 1.0}, 0.14384103622589045),
    # 1/2 (1/4 + 1/4)
    ("total_variation", {}, 0.25),
]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("name", "options", "value"), GOLDEN)
def test_golden_numbers(name: str, options: dict[str, Any], value: float, temperature: float) -> None:
    student = torch.zeros(1, 2, dtype=torch.float64)
    teacher = torch.tensor([[temperature * math.log(3), 0.0]], dtype=torch.float64)
    if name == "generalized_js":
        options = {**options, "temperature_squared": True}
    found = getattr(divergences, name)(student, teacher, temperature=temperature, **options)
    assert float(found) == pytest.approx(temperature**2 * value, rel=1e-12)


def test_every_divergence_has_a_golden_number() -> None:
    assert {name for name, *_ in GOLDEN} == set(ORACLES)


NUMBERS = st.floats(-20, 20, width=32)
VECTORS = st.lists(NUMBERS, min_size=5, max_size=5)
PROPERTY = settings(max_examples=25, deadline=None)


def rows(*values: Row) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([each], dtype=torch.float64) for each in values)


@PROPERTY
@given(VECTORS, VECTORS, NUMBERS, st.floats(0.5, 10))
def test_a_shift_of_the_logits_changes_nothing(
    first: Row, second: Row, shift: float, temperature: float
) -> None:
    student, teacher = rows(first, second)
    for name in ORACLES:
        function = getattr(divergences, name)
        value = function(student, teacher, temperature=temperature)
        moved = function(student + shift, teacher - shift, temperature=temperature)
        torch.testing.assert_close(moved, value, rtol=1e-8, atol=1e-10)


@PROPERTY
@given(VECTORS, VECTORS, st.floats(0.01, 0.99))
def test_mirrors(first: Row, second: Row, share: float) -> None:
    student, teacher = rows(first, second)
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(reverse_kl(student, teacher), kl(teacher, student, temperature=1.0), **close)
    torch.testing.assert_close(
        skew_reverse_kl(student, teacher, skew=share), skew_kl(teacher, student, skew=share), **close
    )
    torch.testing.assert_close(
        generalized_js(student, teacher, beta=share),
        generalized_js(teacher, student, beta=1 - share),
        **close,
    )
    torch.testing.assert_close(total_variation(student, teacher), total_variation(teacher, student), **close)


@PROPERTY
@given(VECTORS, VECTORS, st.floats(0.01, 0.99))
def test_bounds(first: Row, second: Row, share: float) -> None:
    student, teacher = (tensor * 30 for tensor in rows(first, second))
    assert float(skew_kl(student, teacher, skew=share)) <= -math.log(share) + 1e-12
    assert float(skew_reverse_kl(student, teacher, skew=share)) <= -math.log(share) + 1e-12
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert float(generalized_js(student, teacher, beta=share)) <= entropy + 1e-12
    variation = float(total_variation(student, teacher))
    assert 0 <= variation <= 1 + 1e-12
    # Pinsker's inequality
    assert variation**2 <= float(reverse_kl(student, teacher)) / 2 + 1e-12


@PROPERTY
@given(VECTORS, VECTORS)
def test_only_the_normalised_divergence_is_continuous_at_the_ends(first: Row, second: Row) -> None:
    student, teacher = (tensor / 10 for tensor in rows(first, second))
    for end, near in ((0.0, 1e-6), (1.0, 1 - 1e-6)):
        exact = generalized_js(student, teacher, beta=end)
        assert torch.equal(exact, generalized_js(student, teacher, beta=end, normalized=True))
        close = generalized_js(student, teacher, beta=near, normalized=True)
        torch.testing.assert_close(close, exact, rtol=1e-3, atol=1e-8)
        assert float(generalized_js(student, teacher, beta=near)) < 1e-3


def test_the_ends_are_forward_and_reverse_kl_exactly() -> None:
    student, teacher = example()
    assert torch.equal(generalized_js(student, teacher, beta=0.0), kl(student, teacher, temperature=1.0))
    assert torch.equal(generalized_js(student, teacher, beta=1.0), reverse_kl(student, teacher))
    assert torch.equal(skew_kl(student, teacher, skew=0.0), kl(student, teacher, temperature=1.0))
    assert torch.equal(skew_reverse_kl(student, teacher, skew=0.0), reverse_kl(student, teacher))


def test_reverse_kl_is_finite_where_the_teachers_probability_underflows() -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    teacher = torch.tensor([[1000.0, 0.0]])
    assert float(torch.softmax(teacher, dim=-1)[0, 1]) == 0
    value = reverse_kl(student, teacher)  # 1/2 (0 + 1000) - ln 2
    assert float(value.detach()) == pytest.approx(500 - math.log(2))
    value.sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[-250.0, 250.0]]))


@pytest.mark.parametrize("name", ORACLES)
def test_token_logits_give_a_value_per_token(name: str) -> None:
    student, teacher = example((2, 3, 5))
    where = torch.tensor([[True, True, False], [True, False, False]])
    student[~where] = torch.nan
    function = getattr(divergences, name)
    values = function(student, teacher, where=where)
    assert values.shape == (2, 3)
    assert bool((values[~where] == 0).all())
    torch.testing.assert_close(values[where], function(student[where], teacher[where]))


@pytest.mark.parametrize("name", ORACLES)
def test_other_shapes_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 4\)"):
        getattr(divergences, name)(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"where: .*\(3,\)"):
        getattr(divergences, name)(
            torch.zeros(2, 3), torch.zeros(2, 3), where=torch.ones(3, dtype=torch.bool)
        )
