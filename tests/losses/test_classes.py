"""The decoupled KL and the correlation of outputs: oracles in plain floats, golden numbers, invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.losses import kl, spec_of
from potstill.losses.classes import decoupled_kl, dist

Row = list[float]


def softmax(row: Row) -> Row:
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def divergence(first: Row, second: Row) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(first, second, strict=True))


def decoupled_oracle(
    student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Row:
    values = []
    for s, t, right in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        binary, rest = [], []
        for row in (t, s):
            scaled = [value / temperature for value in row]
            probability = softmax(scaled)[right]
            binary.append([probability, 1 - probability])
            rest.append(softmax([value for index, value in enumerate(scaled) if index != right]))
        values.append(temperature**2 * (alpha * divergence(*binary) + beta * divergence(*rest)))
    return values


def pearson(first: Row, second: Row) -> float:
    a, b = ([value - sum(row) / len(row) for value in row] for row in (first, second))
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def dist_oracle(student: Tensor, teacher: Tensor, inter: float, intra: float, temperature: float) -> float:
    ours, theirs = ([softmax(row) for row in (each / temperature).tolist()] for each in (student, teacher))
    by_sample = [pearson(a, b) for a, b in zip(ours, theirs, strict=True)]
    by_class = [
        pearson(list(a), list(b))
        for a, b in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True)
    ]
    lost = [1 - sum(each) / len(each) for each in (by_sample, by_class)]
    return temperature**2 * (inter * lost[0] + intra * lost[1])


def example(shape: tuple[int, ...] = (6, 5)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return 3 * student, 3 * teacher, torch.randint(0, shape[-1], shape[:-1], generator=generator)


@pytest.mark.parametrize("options", [(1.0, 2.0, 4.0), (1.0, 8.0, 1.0), (0.0, 1.0, 2.0), (0.5, 0.0, 3.0)])
def test_decoupled_kl_equals_its_oracle(options: tuple[float, float, float]) -> None:
    alpha, beta, temperature = options
    values = decoupled_kl(*example(), alpha=alpha, beta=beta, temperature=temperature)
    expected = torch.tensor(decoupled_oracle(*example(), *options), dtype=torch.float64)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [(1.0, 1.0, 4.0), (1.0, 1.0, 1.0), (0.0, 2.0, 2.0), (0.5, 0.0, 3.0)])
def test_dist_equals_its_oracle(options: tuple[float, float, float]) -> None:
    student, teacher, _ = example()
    inter, intra, temperature = options
    value = dist(student, teacher, inter=inter, intra=intra, temperature=temperature)
    assert value.shape == ()
    assert float(value) == pytest.approx(dist_oracle(student, teacher, *options), rel=1e-10)


def test_the_defaults_are_the_authors() -> None:
    student, teacher, target = example()
    torch.testing.assert_close(
        decoupled_kl(student, teacher, target),
        decoupled_kl(student, teacher, target, alpha=1.0, beta=2.0, temperature=4.0),
    )
    torch.testing.assert_close(
        dist(student, teacher), dist(student, teacher, inter=1.0, intra=1.0, temperature=1.0)
    )
    assert (spec_of(dist).weight, spec_of(dist).labels, spec_of(dist).over_set) == (2.0, 1.0, True)
    assert (spec_of(decoupled_kl).weight, spec_of(decoupled_kl).target) == (1.0, True)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_golden_numbers_of_decoupled_kl(temperature: float) -> None:
    # p_t = (4, 3, 1)/8: b = (1/2, 1/2), q = (3/4, 1/4); p_s = (1, 1, 1)/3: b = (1/3, 2/3), q = (1/2, 1/2)
    teacher = temperature * torch.tensor([[4.0, 3.0, 1.0]], dtype=torch.float64).log()
    student, target = torch.zeros_like(teacher), torch.tensor([0])
    # KL(b_t || b_s) = 1/2 ln(3/2) + 1/2 ln(3/4) = 1/2 ln(9/8); KL(q_t || q_s) = 3/4 ln(3/2) + 1/4 ln(1/2)
    binary, rest = 0.058891517828191666, 0.13081203594113694
    for alpha, beta in ((1.0, 2.0), (1.0, 0.0), (0.0, 1.0)):
        value = decoupled_kl(student, teacher, target, alpha=alpha, beta=beta, temperature=temperature)
        assert float(value) == pytest.approx(temperature**2 * (alpha * binary + beta * rest), rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_golden_numbers_of_dist(temperature: float) -> None:
    def of(rows: list[Row]) -> Tensor:
        return temperature * torch.tensor(rows, dtype=torch.float64).log()

    # p_t = (3, 2, 1)/6 and p_s = (3, 1, 2)/6, centred (1, 0, -1)/6 and (1, -1, 0)/6: rho = 1/2
    value = dist(of([[3, 1, 2]]), of([[3, 2, 1]]), temperature=temperature)
    assert float(value) == pytest.approx(temperature**2 / 2, rel=1e-12)
    # p_t = (3, 1)/4, (1, 3)/4 and p_s the other way round: every rho is -1
    value = dist(of([[1, 3], [3, 1]]), of([[3, 1], [1, 3]]), inter=1.0, intra=0.5, temperature=temperature)
    assert float(value) == pytest.approx(temperature**2 * 3, rel=1e-12)
    # three samples of p[0] = (1, 2, 3)/4 against (1, 3, 2)/4, rho = 1/2 in each class;
    # of the samples' own rho the first is 1 and the others meet a constant: 0
    student, teacher = of([[1, 3], [3, 1], [2, 2]]), of([[1, 3], [2, 2], [3, 1]])
    value = dist(student, teacher, temperature=temperature)
    assert float(value) == pytest.approx(temperature**2 * (2 / 3 + 1 / 2), rel=1e-12)


NUMBERS = st.floats(-8, 8, width=32)
VECTORS = st.lists(NUMBERS, min_size=5, max_size=5)
PROPERTY = settings(max_examples=25, deadline=None)


@PROPERTY
@given(VECTORS, VECTORS, st.integers(0, 4), st.floats(1, 10))
def test_kl_is_decoupled_kl_with_the_doubt_of_the_teacher_as_beta(
    first: Row, second: Row, right: int, temperature: float
) -> None:
    student, teacher = (torch.tensor([each], dtype=torch.float64) for each in (first, second))
    doubt = 1 - float(torch.softmax(teacher / temperature, dim=-1)[0, right])
    value = decoupled_kl(
        student, teacher, torch.tensor([right]), alpha=1.0, beta=doubt, temperature=temperature
    )
    torch.testing.assert_close(value, kl(student, teacher, temperature=temperature), rtol=1e-8, atol=1e-9)


@PROPERTY
@given(VECTORS, VECTORS, st.integers(0, 4), NUMBERS, st.permutations(range(5)))
def test_decoupled_kl_ignores_a_shift_and_the_names_of_the_classes(
    first: Row, second: Row, right: int, shift: float, order: list[int]
) -> None:
    student, teacher = (torch.tensor([each], dtype=torch.float64) for each in (first, second))
    value = decoupled_kl(student, teacher, torch.tensor([right]))
    moved = decoupled_kl(student[:, order] + shift, teacher[:, order], torch.tensor([order.index(right)]))
    torch.testing.assert_close(moved, value, rtol=1e-8, atol=1e-10)


@PROPERTY
@given(st.integers(0, 1000), st.floats(0.05, 20), st.floats(-1, 1))
def test_dist_between_classes_ignores_scale_and_shift_of_the_probabilities(
    seed: int, scale: float, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.rand(4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    assume(float(student.std(dim=1).min()) > 0.05)
    moved = scale * student + max(shift, 0.01)  # the softmax makes each row's sum 1: a scale of its own
    values = [dist(each.log(), teacher.log(), intra=0.0, temperature=1.0) for each in (student, moved)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-8, atol=1e-10)


@PROPERTY
@given(st.integers(0, 1000), st.permutations(range(6)), st.permutations(range(5)), NUMBERS)
def test_dist_ignores_order_and_shift_and_has_bounds(
    seed: int, samples: list[int], classes: list[int], shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (4 * torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    value = dist(student, teacher, temperature=1.0)
    moved = dist(student[samples][:, classes] + shift, teacher[samples][:, classes], temperature=1.0)
    torch.testing.assert_close(moved, value, rtol=1e-8, atol=1e-10)
    assert 0 <= float(value) <= 4 + 1e-12
    torch.testing.assert_close(dist(teacher, student, temperature=1.0), value)


@pytest.mark.parametrize("margin", [200.0, 1e4, 1e30])
@pytest.mark.parametrize("sure", [True, False])
def test_decoupled_kl_is_finite_at_any_margin(margin: float, sure: bool) -> None:
    student = torch.tensor([[margin, 0.0, -1.0], [0.0, margin, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, margin, 0.0], [0.0, margin, 1.0]])
    target = torch.tensor([1, 1] if sure else [0, 2])
    values = decoupled_kl(student, teacher, target, temperature=1.0)
    assert bool(torch.isfinite(values).all())
    values.sum().backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


def test_a_sure_teacher_still_tells_of_the_other_classes() -> None:
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[200.0, math.log(3), 0.0]])
    value = decoupled_kl(student, teacher, torch.tensor([0]), beta=1.0, temperature=1.0)
    assert float(value.detach()) == pytest.approx(0.13081203594113694, rel=1e-4)
    value.sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, -0.25, 0.25]]), rtol=1e-4, atol=1e-6)


def test_a_masked_prediction_may_have_any_target() -> None:
    student, teacher, target = example()
    where = torch.tensor([True, True, False, True, False, True])
    unlabelled = torch.where(where, target, -100)
    values = decoupled_kl(student, teacher, unlabelled, where=where)
    torch.testing.assert_close(values[where], decoupled_kl(student[where], teacher[where], target[where]))
    assert bool((values[~where] == 0).all())


def test_decoupled_kl_of_tokens_gives_a_value_per_token() -> None:
    student, teacher, target = example((2, 3, 5))
    flat = decoupled_kl(student.flatten(0, 1), teacher.flatten(0, 1), target.flatten())
    torch.testing.assert_close(decoupled_kl(student, teacher, target), flat.reshape(2, 3))


def test_what_is_constant_is_at_no_distance_from_its_like_and_at_one_from_any() -> None:
    flat, peaked = torch.full((3, 4), 0.1), torch.tensor([[3.0, 0.1, 0.7, -1.0]]).repeat(3, 1)
    assert float(dist(flat, flat + 5, temperature=1.0)) == 0.0
    # each row of one is constant, that of the other not; every column of both is constant
    assert float(dist(flat, peaked, temperature=1.0)) == 1.0
    assert float(dist(peaked, flat, temperature=1.0)) == 1.0
    assert float(dist(peaked, peaked.flip(1), inter=0.0, temperature=1.0)) == 0.0


@pytest.mark.parametrize("where", [None, torch.tensor([False, True, False])])
def test_one_sample_has_only_the_part_between_classes(where: Tensor | None) -> None:
    student, teacher, _ = example((3, 5))
    if where is None:
        student, teacher = student[1:2], teacher[1:2]
    student.requires_grad_()
    intra = dist(student, teacher, inter=0.0, where=where)
    assert float(intra.detach()) == 0.0
    (gradient,) = torch.autograd.grad(intra, student)
    assert float(gradient.abs().sum()) == 0.0
    assert float(dist(student, teacher, where=where).detach()) > 0


def test_dist_is_the_same_for_probabilities_below_the_smallest_float() -> None:
    student, teacher, _ = example()
    low = torch.tensor([0.0, 0.0, 0.0, -300.0, -400.0], dtype=torch.float64)
    exact = dist(student + low, teacher + low, temperature=1.0)
    found = dist((student + low).float(), (teacher + low).float(), temperature=1.0)
    assert float(found) == pytest.approx(float(exact), rel=1e-3)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        ((4, 3), (3,), r"logits \(4, 3\) and target \(3,\)"),
        ((4, 3), (4, 1), r"logits \(4, 3\) and target \(4, 1\)"),
        ((4, 1), (4,), r"at least 2 classes .*\(4, 1\)"),
    ],
)
def test_targets_that_do_not_fit_are_named(
    logits: tuple[int, ...], target: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decoupled_kl(torch.zeros(logits), torch.zeros(logits), torch.zeros(target, dtype=torch.int64))


def test_dist_names_shapes_that_do_not_fit() -> None:
    calls: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        ((torch.zeros(2, 3), torch.zeros(2, 4)), {}, r"\(2, 3\) and \(2, 4\)"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)), {}, r"\(N, C\), got \(2, 3, 4\)"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), {"where": torch.ones(2, 3, dtype=torch.bool)}, "where: "),
    ]
    for inputs, options, message in calls:
        with pytest.raises(ValueError, match=message):
            dist(*inputs, **options)
