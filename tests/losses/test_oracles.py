"""Every loss against a slow oracle: the formula typed again, sample by sample, in plain Python floats."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill import losses

Rows = list[list[float]]


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp((value - max(row)) / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(student: Tensor, teacher: Tensor, temperature: float = 4.0, standardize: bool = False) -> list[float]:
    values = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        if standardize:
            s, t = standardized(s), standardized(t)
        p_s, p_t = softmax(s, temperature), softmax(t, temperature)
        values.append(
            temperature**2 * sum(b * (math.log(b) - math.log(a)) for a, b in zip(p_s, p_t, strict=True))
        )
    return values


def standardized(row: list[float]) -> list[float]:
    mean = sum(row) / len(row)
    spread = math.sqrt(sum((value - mean) ** 2 for value in row) / len(row))
    return [(value - mean) / spread for value in row]


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> list[float]:
    values = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = softmax(s, temperature), softmax(t, temperature)
        values.append(-(temperature**2) * sum(b * math.log(a) for a, b in zip(p_s, p_t, strict=True)))
    return values


def hard_cross_entropy(student: Tensor, teacher: Tensor) -> list[float]:
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    return [-math.log(softmax(s, 1.0)[t.index(max(t))]) for s, t in rows]


def probability_mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> list[float]:
    values = []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p_s, p_t = softmax(s, temperature), softmax(t, temperature)
        values.append(sum((a - b) ** 2 for a, b in zip(p_s, p_t, strict=True)))
    return values


def logit_mse(student: Tensor, teacher: Tensor) -> list[float]:
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    return [sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / len(s) for s, t in rows]


def feature_mse(student: Tensor, teacher: Tensor) -> list[float]:
    values = []
    for s, t in zip(student, teacher, strict=True):
        a, b = s.flatten().tolist(), t.flatten().tolist()
        values.append(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a))
    return values


def feature_cosine(student: Tensor, teacher: Tensor) -> list[float]:
    values = []
    for s, t in zip(student, teacher, strict=True):
        total = 0.0
        _, rows, columns = s.shape
        for row in range(rows):
            for column in range(columns):
                a, b = s[:, row, column].tolist(), t[:, row, column].tolist()
                dot = sum(x * y for x, y in zip(a, b, strict=True))
                total += 1 - dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
        values.append(total / (rows * columns))
    return values


def attention_transfer(student: Tensor, teacher: Tensor, variant: str = "mean") -> list[float]:
    values = []
    for s, t in zip(student, teacher, strict=True):
        difference = [a - b for a, b in zip(attention(s), attention(t), strict=True)]
        squares = sum(value * value for value in difference)
        values.append(squares / len(difference) if variant == "mean" else math.sqrt(squares))
    return values


def attention(maps: Tensor) -> list[float]:
    channels, rows, columns = maps.shape
    energy = [
        sum(float(maps[channel, row, column]) ** 2 for channel in range(channels)) / channels
        for row in range(rows)
        for column in range(columns)
    ]
    norm = math.sqrt(sum(value * value for value in energy))
    return [value / norm for value in energy]


ORACLES: dict[str, Callable[..., list[float]]] = {
    "attention_transfer": attention_transfer,
    "feature_cosine": feature_cosine,
    "feature_mse": feature_mse,
    "hard_cross_entropy": hard_cross_entropy,
    "kl": kl,
    "logit_mse": logit_mse,
    "probability_mse": probability_mse,
    "soft_cross_entropy": soft_cross_entropy,
}

CASES: list[tuple[str, dict[str, Any]]] = [
    ("kl", {}),
    ("kl", {"temperature": 1.0}),
    ("kl", {"temperature": 2.0, "standardize": True}),
    ("soft_cross_entropy", {}),
    ("soft_cross_entropy", {"temperature": 1.5}),
    ("hard_cross_entropy", {}),
    ("probability_mse", {}),
    ("probability_mse", {"temperature": 3.0}),
    ("logit_mse", {}),
    ("feature_mse", {}),
    ("feature_cosine", {}),
    ("attention_transfer", {}),
    ("attention_transfer", {"variant": "paper"}),
]


def example(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = (4, 3, 5, 5) if losses.spec_of(getattr(losses, name)).signal != "logits" else (4, 6)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return 3 * student, 3 * teacher


def test_every_loss_has_an_oracle_and_a_golden_number_in_its_family() -> None:
    pages = [path.read_text(encoding="utf-8").lower() for path in Path(__file__).parent.glob("test_*.py")]
    whole = [page for page in pages if "oracle" in page and "golden" in page]
    for name in losses.__all__:
        assert any(re.search(rf"\b{name}\b", page) for page in whole), name
    assert {name for name, _ in CASES} == set(ORACLES)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_loss_equals_its_oracle(name: str, options: dict[str, Any]) -> None:
    student, teacher = example(name)
    values = getattr(losses, name)(student, teacher, **options)
    expected = torch.tensor(ORACLES[name](student, teacher, **options), dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


# Worked by hand or with a pocket calculator from the formulas, for inputs that fit on a line.
GOLDEN: list[tuple[str, list[Any], list[Any], dict[str, Any], float]] = [
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2)
    ("kl", [0.0, 0.0], [math.log(3), 0.0], {"temperature": 1.0}, 0.13081203594113694),
    # the same probabilities at T = 2, times T squared
    ("kl", [0.0, 0.0], [2 * math.log(3), 0.0], {"temperature": 2.0}, 0.52324814376454776),
    ("soft_cross_entropy", [math.log(3), 0.0], [0.0, 0.0], {"temperature": 1.0}, 0.8369882167858358),
    ("hard_cross_entropy", [math.log(3), 0.0], [0.0, 1.0], {}, 1.3862943611198906),
    ("probability_mse", [0.0, 0.0], [math.log(3), 0.0], {}, 0.125),
    ("logit_mse", [1.0, 2.0, 3.0], [1.0, 0.0, 0.0], {}, 13 / 3),
    ("feature_mse", [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], {}, 7.5),
    ("feature_cosine", [3.0, 4.0], [4.0, 3.0], {}, 0.04),
    # squared activations (9, 16) and (1, 1): n = (9, 16)/sqrt(337) and (1, 1)/sqrt(2), cosine 25/sqrt(674)
    ("attention_transfer", [[[3.0, 4.0]]], [[[1.0, 1.0]]], {}, 1 - 25 / math.sqrt(674)),
    (
        "attention_transfer",
        [[[3.0, 4.0]]],
        [[[1.0, 1.0]]],
        {"variant": "paper"},
        math.sqrt(2 - 50 / math.sqrt(674)),
    ),
]


@pytest.mark.parametrize(("name", "student", "teacher", "options", "value"), GOLDEN)
def test_golden_numbers(
    name: str, student: list[Any], teacher: list[Any], options: dict[str, Any], value: float
) -> None:
    tensors = (torch.tensor([each], dtype=torch.float64) for each in (student, teacher))
    assert float(getattr(losses, name)(*tensors, **options)) == pytest.approx(value, rel=1e-12)


def test_every_loss_has_a_golden_number() -> None:
    assert {name for name, *_ in GOLDEN} == set(ORACLES)


NUMBERS = st.floats(-8, 8, width=32)
VECTORS = st.lists(NUMBERS, min_size=5, max_size=5)


@settings(max_examples=40, deadline=None)
@given(VECTORS, VECTORS, st.floats(0.1, 50), NUMBERS)
def test_standardised_kl_ignores_scale_and_shift(
    first: list[float], second: list[float], scale: float, shift: float
) -> None:
    student, teacher = (torch.tensor([each], dtype=torch.float64) for each in (first, second))
    assume(float(student.std()) > 1e-3 and float(teacher.std()) > 1e-3)
    value = losses.kl(student, teacher, standardize=True)
    moved = losses.kl(student * scale + shift, teacher, standardize=True)
    torch.testing.assert_close(moved, value, rtol=1e-6, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_attention_transfer_ignores_positive_scale(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    value = losses.attention_transfer(student, teacher)
    torch.testing.assert_close(losses.attention_transfer(student * scale, teacher), value)


@settings(max_examples=40, deadline=None)
@given(VECTORS, VECTORS, st.floats(0.5, 10))
def test_soft_cross_entropy_is_kl_plus_the_teachers_entropy(
    first: list[float], second: list[float], temperature: float
) -> None:
    student, teacher = (torch.tensor([each], dtype=torch.float64) for each in (first, second))
    cross = losses.soft_cross_entropy(student, teacher, temperature=temperature)
    entropy = losses.soft_cross_entropy(teacher, teacher, temperature=temperature)
    torch.testing.assert_close(cross - entropy, losses.kl(student, teacher, temperature=temperature))


def test_maps_of_different_size_are_pooled_to_the_smaller() -> None:
    teacher = torch.rand(2, 4, 8, 8, dtype=torch.float64)
    pooled = teacher.square().mean(1, keepdim=True).reshape(2, 1, 4, 2, 4, 2).mean((3, 5)).sqrt()
    student = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(
        losses.attention_transfer(student, teacher), losses.attention_transfer(student, pooled)
    )
    assert float(losses.attention_transfer(pooled, teacher).abs().max()) < 1e-12


def test_token_logits_give_a_value_per_token() -> None:
    student, teacher = (torch.randn(2, 3, 5) for _ in range(2))
    where = torch.tensor([[True, True, False], [True, False, False]])
    values = losses.kl(student, teacher, where=where)
    assert values.shape == (2, 3)
    assert bool((values[~where] == 0).all())
    flat = losses.kl(student.flatten(0, 1), teacher.flatten(0, 1))
    torch.testing.assert_close(values[where], flat[where.flatten()])


@pytest.mark.parametrize("level", [0.0, 0.1, -7.3e3])
def test_standardised_kl_has_no_gradient_where_all_classes_are_equal(level: float) -> None:
    student = torch.full((1, 10), level, requires_grad=True)  # 0.1 ten times: its mean rounds
    teacher = torch.arange(10.0).unsqueeze(0)
    value = losses.kl(student, teacher, standardize=True)
    torch.testing.assert_close(
        value, losses.kl(torch.zeros_like(teacher), rows_standardized(teacher), temperature=4.0)
    )
    value.sum().backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) == 0.0


def rows_standardized(logits: Tensor) -> Tensor:
    return torch.tensor([standardized(row) for row in logits.tolist()])


def test_a_vector_of_zeros_has_cosine_distance_one_from_any_and_zero_from_its_like() -> None:
    zeros, ones = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert float(losses.feature_cosine(zeros, ones)) == pytest.approx(1.0)
    assert float(losses.feature_cosine(ones, zeros)) == pytest.approx(1.0)
    assert float(losses.feature_cosine(zeros, zeros)) == 0.0


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 4)])
def test_feature_losses_take_vectors_and_tokens(shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(shape), torch.randn(shape)
    cosine = torch.cosine_similarity(student, teacher, dim=-1).reshape(3, -1)
    torch.testing.assert_close(losses.feature_cosine(student, teacher), (1 - cosine).mean(dim=1))
    squares = (student - teacher).square().reshape(3, -1)
    torch.testing.assert_close(losses.feature_mse(student, teacher), squares.mean(dim=1))


@pytest.mark.parametrize("name", ["attention_transfer", "feature_cosine"])
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_losses_of_directions_bear_squares_beyond_float32(name: str, scale: float) -> None:
    student, teacher = example(name)
    function = getattr(losses, name)
    values = function((student * scale).float(), (teacher * scale).float())
    torch.testing.assert_close(values.double(), function(student, teacher), rtol=1e-4, atol=1e-6)
