"""Gradients at the input: against derivatives worked out by hand, and differentiated twice."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from potstill.losses import gradient_attention

Pair = tuple[Tensor, Tensor]
TARGET = torch.tensor([0, 2, 1])


def weights(seed: int, classes: int = 3, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(classes, size, generator=generator, dtype=torch.float64)


def pixels(shape: tuple[int, ...] = (3, 2, 2, 2)) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def linear(weight: Tensor, inputs: Tensor) -> Pair:
    """A linear net: the gradient of logit c is row c of its weight."""
    return inputs.flatten(1) @ weight.T, inputs


def slopes(weight: Tensor, inputs: Tensor, of: str) -> list[list[float]]:
    """dL/dx of a linear net in plain floats: sum over classes of (p_c - [c = target]) w_c."""
    found = []
    for sample, target in zip(inputs.detach().flatten(1).tolist(), TARGET.tolist(), strict=True):
        rows = weight.tolist()
        if of == "logit":
            found.append(rows[target])
            continue
        logits = [sum(a * b for a, b in zip(row, sample, strict=True)) for row in rows]
        total = sum(math.exp(logit) for logit in logits)
        factors = [math.exp(logit) / total - (c == target) for c, logit in enumerate(logits)]
        columns = zip(*rows, strict=True)
        found.append([sum(f * w for f, w in zip(factors, column, strict=True)) for column in columns])
    return found


def unit(row: list[float]) -> list[float]:
    norm = math.sqrt(sum(value * value for value in row))
    return [value / norm for value in row]


def oracle(student: Tensor, teacher: Tensor, inputs: Tensor, of: str, variant: str) -> list[float]:
    values = []
    for s, t in zip(slopes(student, inputs, of), slopes(teacher, inputs, of), strict=True):
        if variant == "map":  # two channels of four pixels
            s, t = ([(abs(row[k]) + abs(row[k + 4])) / 2 for k in range(4)] for row in (s, t))
        if variant != "paper":
            s, t = unit(s), unit(t)
        values.append(math.sqrt(sum((a - b) ** 2 for a, b in zip(s, t, strict=True))))
    return values


@pytest.mark.parametrize("of", ["loss", "logit"])
@pytest.mark.parametrize("variant", ["normalized", "paper", "map"])
def test_gradient_attention_equals_its_oracle(of: Any, variant: Any) -> None:
    student, teacher, inputs = weights(0), weights(1), pixels()
    values = gradient_attention(
        linear(student, inputs), linear(teacher, inputs), TARGET, of=of, variant=variant
    )
    expected = torch.tensor(oracle(student, teacher, inputs, of, variant), dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


def test_golden_numbers() -> None:
    inputs = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    student = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[8.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    pairs, target = (linear(student, inputs), linear(teacher, inputs)), torch.tensor([0])
    # directions (3/5, 4/5) and (1, 0): sqrt(4/25 + 16/25); with p = 1/2 the sign turns, no more
    assert float(gradient_attention(*pairs, target).detach()) == pytest.approx(math.sqrt(0.8), rel=1e-12)
    # (3, 4) and (8, 0): sqrt(25 + 16); the loss's gradients are half of that
    raw = gradient_attention(*pairs, target, of="logit", variant="paper")
    assert float(raw.detach()) == pytest.approx(math.sqrt(41), rel=1e-12)
    halved = gradient_attention(*pairs, target, variant="paper")
    assert float(halved.detach()) == pytest.approx(math.sqrt(41) / 2, rel=1e-12)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


@pytest.mark.parametrize("of", ["loss", "logit"])
@pytest.mark.parametrize("variant", ["normalized", "paper", "map"])
def test_the_students_parameters_get_the_gradient_of_a_gradient(of: Any, variant: Any) -> None:
    student, teacher, inputs = network(0), network(1), pixels()

    def value() -> Tensor:
        pairs = (student(inputs), inputs), (teacher(inputs), inputs)
        return gradient_attention(*pairs, TARGET, of=of, variant=variant).sum()

    value().backward()
    parameter = student[0].weight  # type: ignore[index]
    with torch.no_grad():
        old = parameter[0, 0, 0, 0].clone()
        parameter[0, 0, 0, 0] = old + 1e-6
        above = value_of(value)
        parameter[0, 0, 0, 0] = old - 1e-6
        below = value_of(value)
    assert float(parameter.grad[0, 0, 0, 0]) == pytest.approx((above - below) / 2e-6, rel=1e-5)
    assert float(parameter.grad[0, 0, 0, 0]) != 0.0
    assert all(each.grad is None for each in teacher.parameters())


def value_of(value: Any) -> float:
    with torch.enable_grad():
        return float(value().detach())


def test_directions_are_those_of_the_whole_loss_and_outlive_it() -> None:
    student, teacher, inputs = weights(0), weights(1), pixels()
    value = gradient_attention(linear(student, inputs), linear(teacher, inputs), TARGET)
    raw = [
        torch.autograd.grad(
            nn.functional.cross_entropy(linear(each, inputs)[0], TARGET, reduction="sum"), inputs
        )[0].flatten(1)
        for each in (student, teacher)
    ]
    torch.testing.assert_close(
        value,
        (raw[0] / raw[0].norm(dim=1, keepdim=True))
        .sub(raw[1] / raw[1].norm(dim=1, keepdim=True))
        .norm(dim=1),
    )
    # A teacher that is sure beyond what float32 can tell from certainty still has a direction.
    single = inputs.detach().float().requires_grad_()
    logits = linear(teacher.float(), single)[0]
    sure = logits + 200 * nn.functional.one_hot(TARGET, 3)
    values = gradient_attention(linear(student.float(), single), (sure, single), TARGET)
    assert bool((values > 0.1).all())
    raw_values = gradient_attention((sure, single), (logits * 0, single), TARGET, variant="paper")
    assert float(raw_values.detach().max()) < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(0, 100))
def test_directions_of_the_logit_ignore_a_positive_scale(scale: float, seed: int) -> None:
    student, teacher, inputs = weights(seed), weights(seed + 1), pixels()
    for variant in ("normalized", "map"):
        values = [
            gradient_attention(
                linear(each, inputs),
                linear(teacher, inputs),
                TARGET,
                of="logit",
                variant=variant,  # type: ignore[arg-type]
            )
            for each in (student, student * scale)
        ]
        torch.testing.assert_close(values[0], values[1])


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(3)))
def test_samples_do_not_touch_each_other(order: list[int]) -> None:
    student, teacher, inputs = weights(0), weights(1), pixels()
    values = gradient_attention(linear(student, inputs), linear(teacher, inputs), TARGET)
    moved = inputs.detach()[order].requires_grad_()
    again = gradient_attention(linear(student, moved), linear(teacher, moved), TARGET[order])
    torch.testing.assert_close(again, values[order])


def test_maps_of_different_size_are_pooled_to_the_smaller() -> None:
    small, big = pixels((3, 2, 2, 2)), pixels((3, 5, 4, 4))
    student, teacher = linear(weights(0), small), linear(weights(1, size=80), big)
    values = gradient_attention(student, teacher, TARGET, variant="map")
    assert values.shape == (3,)
    with pytest.raises(ValueError, match=r"one shape.*\(3, 2, 2, 2\).*\(3, 5, 4, 4\)"):
        gradient_attention(student, teacher, TARGET)


def test_tokens_have_a_map_over_positions_and_vectors_have_none() -> None:
    tokens = pixels((3, 4, 2))
    pairs = linear(weights(0), tokens), linear(weights(1), tokens)
    assert gradient_attention(*pairs, TARGET, variant="map").shape == (3,)
    vectors = pixels((3, 8))
    with pytest.raises(ValueError, match=r"variant map: .*\(3, 8\)"):
        gradient_attention(linear(weights(0), vectors), linear(weights(1), vectors), TARGET, variant="map")


def test_what_cannot_be_differentiated_says_what_to_tap() -> None:
    inputs = pixels()
    good = linear(weights(0), inputs)
    with pytest.raises(ValueError, match=r"teacher cannot be differentiated.*tap ':input'"):
        gradient_attention(good, linear(weights(1), inputs.detach()), TARGET)
    with pytest.raises(ValueError, match=r"student's logits do not depend on .*tap ':input'"):
        gradient_attention((good[0], pixels()), good, TARGET)
    with pytest.raises(ValueError, match=r"student's tensor holds integers \(torch.int64\).*embedding"):
        gradient_attention((good[0], torch.ones(3, 4, dtype=torch.int64)), good, TARGET)
    with pytest.raises(ValueError, match=r"target: expected shape \(3,\), got \(2,\)"):
        gradient_attention(good, good, TARGET[:2])
    with pytest.raises(ValueError, match=r"at least two classes.*\(3, 1\)"):
        gradient_attention((good[0][:, :1], inputs), good, TARGET)
