"""Losses inside transformers against slow oracles in plain Python floats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from potstill.losses import attention_maps, feature_cosine, feature_mse, hidden_states, minilm_relation

Rows = list[list[float]]


def probabilities(heads: int, seed: int = 0, length: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(3, heads, length, length, generator=generator, dtype=torch.float64)).softmax(-1)


def tokens(width: int, seed: int = 0, length: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, length, width, generator=generator, dtype=torch.float64)


def divergence(teacher: list[float], student: list[float]) -> float:
    return sum(t * math.log(t / s) for s, t in zip(student, teacher, strict=True))


def attention_oracle(student: Tensor, teacher: Tensor, variant: str) -> list[float]:
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    values = []
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        rows = [pair for heads in zip(ours, theirs, strict=True) for pair in zip(*heads, strict=True)]
        if variant == "kl":
            values.append(sum(divergence(t, s) for s, t in rows) / len(rows))
        else:
            squares = [(a - b) ** 2 for s, t in rows for a, b in zip(s, t, strict=True)]
            values.append(sum(squares) / len(squares))
    return values


def relation(rows: Rows) -> Rows:
    """Softmax of the scaled products of all rows with all rows."""
    found = []
    for row in rows:
        scores = [sum(a * b for a, b in zip(row, other, strict=True)) / math.sqrt(len(row)) for other in rows]
        total = sum(math.exp(score) for score in scores)
        found.append([math.exp(score) / total for score in scores])
    return found


def relation_oracle(student: Tensor, teacher: Tensor, heads: int, parts: int) -> list[float]:
    values = []
    for ours, theirs in zip(student, teacher, strict=True):
        total, count = 0.0, 0
        for part in range(parts):
            for head in range(heads):
                cut = []
                for sample in (ours, theirs):
                    width = sample.shape[1] // parts // heads
                    begin = part * width * heads + head * width
                    cut.append(relation(sample[:, begin : begin + width].tolist()))
                for s, t in zip(*cut, strict=True):
                    total, count = total + divergence(t, s), count + 1
        values.append(total / count)
    return values


@pytest.mark.parametrize("variant", ["kl", "mse"])
@pytest.mark.parametrize("heads", [(2, 2), (2, 6), (4, 1)])
def test_attention_maps_equal_their_oracle(variant: str, heads: tuple[int, int]) -> None:
    student, teacher = probabilities(heads[0]), probabilities(heads[1], seed=1)
    expected = torch.tensor(attention_oracle(student, teacher, variant), dtype=torch.float64)
    values = attention_maps(student, teacher, variant=variant)  # type: ignore[arg-type]
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("heads", "parts"), [(1, 1), (2, 1), (6, 1), (2, 3)])
def test_minilm_relation_equals_its_oracle(heads: int, parts: int) -> None:
    student, teacher = tokens(6 * parts), tokens(12 * parts, seed=1)
    expected = torch.tensor(relation_oracle(student, teacher, heads, parts), dtype=torch.float64)
    split = "qkv" if parts == 3 else "none"
    values = minilm_relation(student, teacher, relation_heads=heads, split=split)  # type: ignore[arg-type]
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


def test_golden_numbers() -> None:
    even = torch.full((1, 2, 2, 2), 0.5, dtype=torch.float64)
    sure = torch.tensor([[0.75, 0.25], [1.0, 0.0]], dtype=torch.float64).expand(1, 2, 2, 2)
    # rows: 3/4 ln(3/2) + 1/4 ln(1/2) = 0.1308120 and ln 2, with 1e-7 for the probability 0
    expected = (0.75 * math.log(1.5) - 0.25 * math.log(2) + math.log(2)) / 2
    assert float(attention_maps(even, sure)) == pytest.approx(expected, rel=1e-5)
    # squares: 1/16, 1/16, 1/4, 1/4
    assert float(attention_maps(even, sure, variant="mse")) == pytest.approx(0.15625, rel=1e-12)
    # X X^T = ln 3 times the identity: rows (3/4, 1/4) and (1/4, 3/4) against (1/2, 1/2); one head of width 1,
    # and a second in which all is 0
    teacher = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64) * math.sqrt(math.log(3) / 2)
    value = minilm_relation(torch.zeros(1, 2, 2, dtype=torch.float64), teacher, relation_heads=2)
    assert float(value) == pytest.approx((0.75 * math.log(1.5) - 0.25 * math.log(2)) / 2, rel=1e-12)


def test_only_valid_queries_count() -> None:
    student, teacher = probabilities(2), probabilities(2, seed=1)
    where = torch.tensor([[True, True, False, False], [True, True, True, True], [False] * 4])
    values = attention_maps(student, teacher, where=where)
    student[0, :, 2:] = torch.nan
    assert torch.equal(attention_maps(student, teacher, where=where), values)
    torch.testing.assert_close(values[1], attention_maps(probabilities(2), teacher)[1])
    rows = [
        divergence(teacher[0, h, q].tolist(), probabilities(2)[0, h, q].tolist())
        for h in (0, 1)
        for q in (0, 1)
    ]
    assert float(values[0]) == pytest.approx(sum(rows) / 4)
    assert float(values[2]) == 0.0


def test_padding_tokens_are_no_part_of_the_relations() -> None:
    student, teacher = tokens(4), tokens(8, seed=1)
    where = torch.tensor([[True, True, True, False]]).expand(3, 4)
    student[:, 3], teacher[:, 3] = torch.nan, 1e4
    student.requires_grad_()
    values = minilm_relation(student, teacher, where=where)
    torch.testing.assert_close(values, minilm_relation(student[:, :3], teacher[:, :3]))
    values.sum().backward()
    assert student.grad is not None
    assert bool((student.grad[:, 3] == 0).all())
    assert bool(student.grad.isfinite().all())
    nothing = minilm_relation(student.detach(), teacher, where=torch.zeros(3, 4, dtype=torch.bool))
    assert float(nothing.abs().max()) == 0.0


def test_as_many_relation_heads_as_both_widths_allow() -> None:
    student, teacher = tokens(8), tokens(12, seed=1)
    expected = minilm_relation(student, teacher, relation_heads=4)
    torch.testing.assert_close(minilm_relation(student, teacher), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_relations_ignore_a_rotation_within_each_head(seed: int) -> None:
    student, teacher = tokens(6, seed), tokens(6, seed + 1)
    turn, _ = torch.linalg.qr(tokens(3, seed, length=3)[0])
    turned = (student.unflatten(2, (2, 3)) @ turn).flatten(2)
    values = minilm_relation(student, teacher, relation_heads=2)
    torch.testing.assert_close(minilm_relation(turned, teacher, relation_heads=2), values)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)), st.permutations(range(2)))
def test_neither_the_order_of_tokens_nor_of_heads_counts(order: list[int], heads: list[int]) -> None:
    student, teacher = probabilities(2), probabilities(2, seed=1)
    moved = [each[:, heads][:, :, order][:, :, :, order] for each in (student, teacher)]
    torch.testing.assert_close(attention_maps(*moved), attention_maps(student, teacher))
    student, teacher = tokens(4), tokens(4, seed=1)
    moved = [each[:, order] for each in (student, teacher)]
    torch.testing.assert_close(minilm_relation(*moved), minilm_relation(student, teacher))


def test_dropped_out_attention_never_goes_below_zero() -> None:
    student, teacher = probabilities(2), probabilities(2, seed=1)
    keep = torch.rand(student.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    assert bool((attention_maps(student * keep / 0.7, teacher) >= 0).all())


def test_attention_that_half_precision_rounded_to_zero_stays_finite() -> None:
    student = torch.eye(4, dtype=torch.float16).expand(1, 2, 4, 4).clone().requires_grad_()
    teacher = probabilities(2)[:1].half()
    value = attention_maps(student, teacher)
    value.sum().backward()
    assert student.grad is not None
    assert bool(value.isfinite().all() and student.grad.isfinite().all())


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected attention .*\(2, 2, 3, 4\)"):
        attention_maps(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 4, 4))
    with pytest.raises(ValueError, match=r"same tokens.*\(2, 2, 4, 4\).*\(2, 2, 5, 5\)"):
        attention_maps(torch.ones(2, 2, 4, 4), torch.ones(2, 2, 5, 5))
    with pytest.raises(ValueError, match=r"one length.*\(2, 3, 4\).*\(2, 5, 4\)"):
        minilm_relation(torch.ones(2, 3, 4), torch.ones(2, 5, 4))
    with pytest.raises(ValueError, match="relation_heads: expected a divisor of the width 4, got 3"):
        minilm_relation(torch.ones(2, 3, 4), torch.ones(2, 3, 4), relation_heads=3)
    with pytest.raises(ValueError, match=r"three equal parts.*\(2, 3, 4\)"):
        minilm_relation(torch.ones(2, 3, 4), torch.ones(2, 3, 4), split="qkv")


def test_hidden_states_equal_their_oracle_and_a_golden_number() -> None:
    student, teacher = tokens(6), tokens(6, seed=1)
    where = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    values = hidden_states(student, teacher, where=where)
    for row, valid in enumerate([2, 4, 0]):
        squares = [
            (a - b) ** 2
            for ours, theirs in zip(student[row][:valid].tolist(), teacher[row][:valid].tolist(), strict=True)
            for a, b in zip(ours, theirs, strict=True)
        ]
        expected = sum(squares) / len(squares) if squares else 0.0
        assert float(values[row]) == pytest.approx(expected, rel=1e-12)
    ones, zeros = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    assert float(hidden_states(ones, 0.5 * zeros)) == 1.0
    with pytest.raises(ValueError, match="of one shape"):
        hidden_states(ones, torch.zeros(1, 2, 4))


@pytest.mark.parametrize("loss", [feature_mse, feature_cosine])
def test_features_of_tokens_may_be_masked_token_by_token(loss: Any) -> None:
    student, teacher = tokens(6), tokens(6, seed=1)
    where = torch.tensor([[True, True, False, False]] * 3)
    student[:, 2:] = torch.nan
    torch.testing.assert_close(
        loss(student, teacher, where=where), loss(student[:, :2], teacher[:, :2]), rtol=1e-12, atol=1e-12
    )
