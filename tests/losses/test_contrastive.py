"""Contrastive distillation against a slow oracle; its memory is exact and the same everywhere."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from potstill.losses import contrastive, spec_of
from potstill.losses.contrastive import Contrastive


def example(seed: int = 7) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Five samples of twelve, embeddings of six numbers; two of the samples are among the negatives."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    ours, theirs = normalize(torch.randn(2, 12, 6, generator=generator, dtype=torch.float64), dim=-1)
    index, negatives = torch.tensor([4, 0, 11, 7, 2]), torch.tensor([1, 4, 9, 2, 3, 10])
    rows = {"student_memory": ours, "teacher_memory": theirs, "index": index, "negatives": negatives}
    return 3 * student, 2 * teacher, rows


def one_way(vectors: list[list[float]], memory: list[list[float]], rows: dict[str, Tensor], t: float) -> Any:
    values = []
    for vector, own in zip(vectors, rows["index"].tolist(), strict=True):
        length = math.sqrt(sum(x * x for x in vector))
        others = [row for row in rows["negatives"].tolist() if row != own]
        mean = math.exp(1 / (2 * len(vector) * t * t))
        total = 0.0
        for row in [own, *others]:
            cosine = sum(x * y for x, y in zip(vector, memory[row], strict=True)) / length
            density = math.exp(cosine / t) / mean  # times the number of samples, as is the noise's
            is_own = density / (density + len(others))
            total -= math.log(is_own if row == own else 1 - is_own)
        values.append(total)
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_it_equals_its_oracle(temperature: float) -> None:
    student, teacher, rows = example()
    expected = one_way(student.tolist(), rows["teacher_memory"].tolist(), rows, temperature)
    expected += one_way(teacher.tolist(), rows["student_memory"].tolist(), rows, temperature)
    values = contrastive(student, teacher, temperature=temperature, **rows)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12)


def test_golden_number() -> None:
    memory = torch.eye(2, dtype=torch.float64)
    rows = {"student_memory": memory, "teacher_memory": memory, "negatives": torch.tensor([0, 1])}
    # E = 2, T = 1/2: log Z = 1, one negative: a_own = 2 - 1 = 1, a_other = 0 - 1, each way
    value = contrastive(memory[:1], memory[:1], index=torch.tensor([0]), temperature=0.5, **rows)
    assert float(value) == pytest.approx(4 * math.log(1 + math.exp(-1)), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_length_does_not_count_and_a_common_rotation_changes_nothing(seed: int, scale: float) -> None:
    student, teacher, rows = example(seed)
    value = contrastive(student, teacher, **rows)
    torch.testing.assert_close(contrastive(student * scale, teacher, **rows), value)
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    memories = {name: rows[name] @ turn for name in ("student_memory", "teacher_memory")}
    torch.testing.assert_close(contrastive(student @ turn, teacher @ turn, **{**rows, **memories}), value)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(6)))
def test_the_order_of_negatives_does_not_count(seed: int, order: list[int]) -> None:
    student, teacher, rows = example(seed)
    value = contrastive(student, teacher, **rows)
    turned = {**rows, "negatives": rows["negatives"][torch.tensor(order)]}
    torch.testing.assert_close(contrastive(student, teacher, **turned), value)


def test_the_constant_is_the_one_that_the_authors_measure() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = normalize(torch.randn(50000, 128, generator=generator, dtype=torch.float64), dim=1)
    measured = float((memory[:8] @ memory[8:].T / 0.07).exp().mean())
    assert measured == pytest.approx(math.exp(1 / (2 * 128 * 0.07**2)), rel=0.02)


def test_a_mask_is_a_subset_of_samples_with_rows_of_their_own() -> None:
    student, teacher, rows = example()
    where = torch.tensor([True, False, True, True, False])
    values = contrastive(student, teacher, where=where, **rows)
    subset = contrastive(student[where], teacher[where], **{**rows, "index": rows["index"][where]})
    torch.testing.assert_close(values[where], subset)
    assert not values[~where].any()


def test_shapes_that_do_not_fit_are_named() -> None:
    student, teacher, rows = example()
    with pytest.raises(ValueError, match=r"student \(5, 6\), teacher \(5, 5\) and index \(5,\)"):
        contrastive(student, teacher[:, :5], **rows)
    with pytest.raises(ValueError, match=r"memories \(S, 5\), got \(12, 6\) and \(12, 6\)"):
        contrastive(student[:, :5], teacher[:, :5], **rows)


def module(**options: Any) -> Contrastive:
    torch.manual_seed(0)
    return Contrastive((2, 4), (2, 7), samples=40, **{"embedding": 8, "num_negatives": 16, **options})


def batch(rows: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(rows, width, generator=generator) for width in (4, 7))
    return student, teacher, torch.randperm(40, generator=generator)[:rows]


def test_forward_changes_nothing_and_remember_only_the_rows_of_valid_samples() -> None:
    contrast, (student, teacher, index) = module(), batch()
    before = copy.deepcopy(contrast.state_dict())
    first, second = (contrast(student, teacher, index=index) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], tensor) for name, tensor in contrast.state_dict().items())
    where = torch.tensor([True, True, False, True, True, True])
    student[2] = torch.nan
    contrast.remember(student, teacher, where=where, index=index)
    changed = (contrast.student_memory != before["student_memory"]).any(dim=1)
    assert sorted(changed.nonzero().flatten().tolist()) == sorted(index[where].tolist())
    for memory in (contrast.student_memory, contrast.teacher_memory):
        torch.testing.assert_close(memory.norm(dim=1), torch.ones(40))
    assert int(contrast.step) == 1


def test_a_row_is_the_direction_of_the_mean_of_old_and_new() -> None:
    contrast, (student, teacher, index) = module(momentum=0.25), batch()
    old = contrast.teacher_memory[index]
    new = normalize(contrast.teacher(teacher).detach(), dim=1)
    contrast.remember(student, teacher, index=index)
    torch.testing.assert_close(
        contrast.teacher_memory[index], normalize(0.25 * old + 0.75 * new, dim=1), rtol=1e-5, atol=1e-6
    )


def test_halves_remembered_together_are_the_whole() -> None:
    whole, pieces = module(), module()
    student, teacher, index = batch()
    whole.remember(student, teacher, index=index)
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    pieces.remember(student[order], teacher[order], index=index[order])
    torch.testing.assert_close(pieces.student_memory, whole.student_memory)
    assert torch.equal(pieces._drawn(), whole._drawn())


def test_a_restored_module_goes_on_exactly() -> None:
    contrast = module()
    for seed in range(3):
        student, teacher, index = batch(seed=seed)
        contrast.remember(student, teacher, index=index)
    other = module()
    other.load_state_dict(contrast.state_dict())
    student, teacher, index = batch(seed=9)
    assert torch.equal(other(student, teacher, index=index), contrast(student, teacher, index=index))
    assert not torch.equal(module()._drawn(), contrast._drawn())


def test_negatives_are_no_more_than_there_are() -> None:
    assert sorted(module(num_negatives=16384)._drawn().tolist()) == list(range(40))
    assert len(set(module()._drawn().tolist())) == 16


@pytest.mark.parametrize("bad", [-1, 40])
def test_an_index_outside_the_training_set_is_named(bad: int) -> None:
    contrast, (student, teacher, index) = module(), batch()
    index[0] = bad
    for call in (contrast, contrast.remember):
        with pytest.raises(ValueError, match=rf"training set of 40 samples, 0 to 39, got .*{bad}"):
            call(student, teacher, index=index)


@pytest.mark.parametrize("samples", [None, 1])
def test_the_number_of_samples_must_be_known(samples: int | None) -> None:
    with pytest.raises(ValueError, match=rf"samples=, their number, at least 2, got {samples}"):
        Contrastive((2, 4), (2, 4), samples=samples)


def test_embeddings_learn_to_recognise_their_sample() -> None:
    contrast = module()
    generator = torch.Generator().manual_seed(5)
    student = torch.randn(40, 4, generator=generator)
    teacher = student @ torch.randn(4, 7, generator=generator)
    optimizer, index = torch.optim.Adam(contrast.parameters(), lr=0.01), torch.arange(40)
    values = []
    for _ in range(80):
        loss = contrast(student, teacher, index=index).mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in contrast.parameters())
        optimizer.step()
        contrast.remember(student, teacher, index=index)
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_module_bears_half_precision_and_vectors_of_zeros(dtype: torch.dtype) -> None:
    contrast, (student, teacher, index) = module(), batch()
    for scale in (0.0, 300.0):
        values = contrast((scale * student).to(dtype), (scale * teacher).to(dtype), index=index)
        assert values.dtype == torch.float32
        assert bool(torch.isfinite(values).all())


def test_it_is_declared_with_its_module() -> None:
    assert spec_of(contrastive).learns is Contrastive
