"""The fused projection and divergence against logits in full: values, gradients, masks, vocabularies."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from potstill import losses
from potstill.losses import _fused
from potstill.losses._slopes import SLOPES
from potstill.losses.heads import Head, Projected, TopK
from potstill.losses.sequence import linear_divergence

CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in SLOPES),
    ("skew_kl", {"skew": 0.0}),
    ("skew_kl", {"skew": 0.6}),
    ("skew_reverse_kl", {"skew": 1.0}),
    *(("generalized_js", {"beta": beta, "normalized": True}) for beta in (0.0, 0.2, 1.0)),
    ("generalized_js", {"temperature_squared": True}),
]
WORDS, WIDTH = 11, 4


@pytest.fixture(autouse=True)
def few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fused, "LOGITS_AT_ONCE", 2 * WORDS)
    monkeypatch.setattr(_fused, "TOKENS_AT_ONCE", 1)


def made(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def student(words: int = WORDS, **options: Any) -> tuple[Tensor, Head]:
    """Hidden states (2, 3, 4) and a head, float64, with gradients."""
    hidden = made(2, 3, WIDTH, seed=0).requires_grad_()
    return hidden, Head(
        made(words, WIDTH, seed=1).requires_grad_(), made(words, seed=2).requires_grad_(), **options
    )


def projected(words: int = WORDS, soft_cap: float | None = None) -> Projected:
    return Projected(made(2, 3, 6, seed=3), Head(made(words, 6, seed=4), made(words, seed=5), soft_cap))


def full(hidden: Tensor, head: Head) -> Tensor:
    """Logits, written out."""
    logits = hidden @ head.weight.t() + (0 if head.bias is None else head.bias)
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


def gradients(loss: Tensor, hidden: Tensor, head: Head) -> list[Tensor]:
    inputs = [each for each in (hidden, head.weight, head.bias) if each is not None and each.requires_grad]
    return list(torch.autograd.grad(loss, inputs))


def oracle(name: str, *args: Any, **options: Any) -> Tensor:
    result: Tensor = getattr(losses, name)(*args, **options)
    return result


CLOSE = {"rtol": 1e-9, "atol": 1e-12}
WHERE = torch.tensor([[True, False, True], [False, True, True]])
TARGET = torch.tensor([[1, -100, 10], [-100, 4, 0]])


def test_every_divergence_of_tokens_is_there() -> None:
    assert set(SLOPES) == {"kl", *losses.divergences.__all__}


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_value_and_gradient_are_those_of_the_divergence_on_logits(
    name: str, options: dict[str, Any], temperature: float
) -> None:
    hidden, head = student(soft_cap=3.0)
    teacher = projected(soft_cap=5.0)
    found = linear_divergence(
        hidden, head, teacher, divergence=name, temperature=temperature, where=WHERE, weight=0.7, **options
    )
    values = oracle(name, full(hidden, head), full(*teacher), temperature=temperature, where=WHERE, **options)
    torch.testing.assert_close(found.values, values.detach(), **CLOSE)
    torch.testing.assert_close(found.loss, 0.7 * values.sum(), **CLOSE)
    assert found.cross_entropy is None
    for mine, theirs in zip(
        gradients(3 * found.loss, hidden, head),
        gradients(3 * 0.7 * values.sum(), hidden, head),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_cross_entropy_comes_in_the_same_pass_without_temperature(temperature: float) -> None:
    hidden, head = student()
    teacher = projected()
    found = linear_divergence(
        hidden,
        head,
        teacher,
        temperature=temperature,
        weight=0.5,
        target=TARGET,
        target_weight=2.0,
        where=WHERE,
    )
    logits = full(hidden, head)
    entropy = cross_entropy(logits.flatten(0, 1), TARGET.flatten(), reduction="none").view(2, 3)
    values = losses.kl(logits, full(*teacher), temperature=temperature, where=WHERE)
    expected = 0.5 * values.sum() + 2 * entropy.sum()
    assert found.cross_entropy is not None
    torch.testing.assert_close(found.cross_entropy, entropy.detach(), **CLOSE)
    torch.testing.assert_close(found.loss, expected, **CLOSE)
    for mine, theirs in zip(
        gradients(found.loss, hidden, head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("kind", ["projected", "logits", "likeliest"])
@pytest.mark.parametrize("name", SLOPES)
def test_gradcheck(name: str, kind: str) -> None:
    hidden, head = student(soft_cap=3.0)
    assert head.bias is not None

    def loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_divergence(
            hidden,
            Head(weight, bias, 3.0),
            {"projected": projected(), "logits": full(*projected()), "likeliest": likeliest(4)}[kind],
            divergence=name,
            temperature=1.5,
            target=TARGET,
            where=WHERE,
        ).loss

    assert torch.autograd.gradcheck(loss, (hidden, head.weight, head.bias))


def test_golden_number() -> None:
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2); gradient p_s - p_t
    hidden = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    found = linear_divergence(hidden, torch.eye(2, dtype=torch.float64), teacher)
    assert float(found.loss.detach()) == pytest.approx(0.13081203594113694, rel=1e-12)
    (gradient,) = torch.autograd.grad(found.loss, hidden)
    torch.testing.assert_close(gradient, torch.tensor([[-0.25, 0.25]], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["projected", "logits", "likeliest"])
def test_masked_equals_subset_and_what_is_masked_reaches_nothing(kind: str) -> None:
    hidden, head = student()
    whole = {"projected": projected(), "logits": full(*projected()), "likeliest": likeliest(4)}[kind]
    broken = hidden.detach().clone()
    broken[~WHERE] = torch.nan
    broken.requires_grad_()
    found = linear_divergence(broken, head, whole, target=TARGET, where=WHERE)

    def subset(tensor: Tensor) -> Tensor:
        return tensor[WHERE]

    if isinstance(whole, Projected):
        few: Any = Projected(subset(whole.hidden), whole.head)
    elif isinstance(whole, TopK):
        few = TopK(*map(subset, whole))
    else:
        few = subset(whole)
    alone = linear_divergence(hidden[WHERE], head, few, target=TARGET[WHERE])
    torch.testing.assert_close(found.loss, alone.loss, **CLOSE)
    torch.testing.assert_close(found.values[WHERE], alone.values, **CLOSE)
    assert bool((found.values[~WHERE] == 0).all())
    mine, theirs = gradients(found.loss, broken, head), gradients(alone.loss, hidden, head)
    assert bool((mine[0][~WHERE] == 0).all())
    for one, other in zip(mine[1:], theirs[1:], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_no_token_that_counts_is_zero_with_a_gradient_of_zero() -> None:
    hidden, head = student()
    found = linear_divergence(
        hidden, head, projected(), target=TARGET, where=torch.zeros(2, 3, dtype=torch.bool)
    )
    assert float(found.loss.detach()) == 0
    assert all(bool((each == 0).all()) for each in gradients(found.loss, hidden, head))


@pytest.mark.parametrize("name", SLOPES)
def test_nothing_where_the_student_is_the_teacher(name: str) -> None:
    hidden, head = student()
    found = linear_divergence(hidden, head, Projected(hidden, head), divergence=name)
    torch.testing.assert_close(found.values, torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["projected", "logits"])
@pytest.mark.parametrize(("ours", "theirs"), [(11, 8), (8, 11)])
def test_padded_vocabularies_are_cut_to_the_shared_prefix(ours: int, theirs: int, kind: str) -> None:
    hidden, head = student(ours)
    teacher = projected(theirs)
    target = torch.tensor([[1, 2, 7], [0, 4, 0]])
    found = linear_divergence(hidden, head, teacher if kind == "projected" else full(*teacher), target=target)
    logits = full(hidden, head)[..., :8]
    expected = losses.kl(logits, full(*teacher)[..., :8], temperature=1.0).sum()
    expected = expected + cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
    torch.testing.assert_close(found.loss, expected, **CLOSE)
    for mine, other in zip(
        gradients(found.loss, hidden, head), gradients(expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(mine, other, **CLOSE)
    with pytest.raises(ValueError, match=r"target: expected words 0 to 7, .* got 0 to 8"):
        linear_divergence(hidden, head, teacher, target=torch.full((2, 3), 8).tril())


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, head = student()
    assert head.bias is not None
    frozen = Head(head.weight.detach(), head.bias.detach())
    loss = linear_divergence(hidden, frozen, projected()).total
    made = loss.grad_fn.gradients  # type: ignore[union-attr]
    assert [each is not None for each in made] == [True, False, False]
    with torch.no_grad():
        assert not linear_divergence(hidden, head, projected()).loss.requires_grad


def likeliest(count: int, temperature: float = 1.0) -> TopK:
    """The teacher's words by probability, and the exact mass of the others."""
    logarithms = torch.log_softmax(full(*projected()) / temperature, dim=-1)
    known, ids = logarithms.topk(count, dim=-1)
    tail = logarithms.exp().scatter(-1, ids, 0.0).sum(dim=-1).log()
    return TopK(ids, known, tail)


@pytest.mark.parametrize("name", SLOPES)
def test_likeliest_words_are_a_divergence_of_buckets(name: str) -> None:
    hidden, head = student()
    teacher = likeliest(4)
    found = linear_divergence(hidden, head, teacher, divergence=name)
    ours = torch.softmax(full(hidden, head), dim=-1)
    chosen = ours.gather(-1, teacher.ids)
    buckets = torch.cat([chosen, 1 - chosen.sum(-1, keepdim=True)], dim=-1).log()
    theirs = torch.cat([teacher.log_probabilities, teacher.log_tail.unsqueeze(-1)], dim=-1)
    values = oracle(name, buckets, theirs, temperature=1.0)
    torch.testing.assert_close(found.values, values.detach(), **CLOSE)
    for mine, other in zip(
        gradients(found.loss, hidden, head), gradients(values.sum(), hidden, head), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", SLOPES)
def test_all_words_in_the_cache_are_the_dense_divergence(name: str) -> None:
    hidden, head = student()
    dense = linear_divergence(hidden, head, projected(), divergence=name)
    cached = linear_divergence(hidden, head, likeliest(WORDS), divergence=name)
    torch.testing.assert_close(cached.values, dense.values, **CLOSE)
    for mine, other in zip(
        gradients(cached.loss, hidden, head), gradients(dense.loss, hidden, head), strict=True
    ):
        torch.testing.assert_close(mine, other, **CLOSE)


def test_buckets_never_say_more_than_the_true_divergence() -> None:
    hidden, head = student()
    dense = linear_divergence(hidden, head, projected()).values
    found = [linear_divergence(hidden, head, likeliest(count)).values for count in (1, 4, 8)]
    assert all(bool((each <= dense + 1e-12).all()) for each in found)
    assert all(bool((less <= more + 1e-12).all()) for less, more in itertools.pairwise(found))


@pytest.mark.parametrize("name", SLOPES)
def test_extreme_logits_in_half_precision_stay_finite(name: str) -> None:
    hidden = (60 * made(2, 3, WIDTH, seed=0)).bfloat16().requires_grad_()
    weight = made(WORDS, WIDTH, seed=1, dtype=torch.bfloat16).requires_grad_()
    for teacher in (-full(hidden.detach(), Head(weight.detach())), likeliest(4)):
        found = linear_divergence(hidden, weight, teacher, divergence=name, target=TARGET, where=WHERE)
        assert found.loss.dtype == torch.float32
        gradient = torch.autograd.grad(found.loss, (hidden, weight))
        assert all(bool(each.isfinite().all()) and each.dtype == torch.bfloat16 for each in gradient)
        assert bool(found.values.isfinite().all())


def test_half_precision_is_near_float32() -> None:
    hidden, head = student()
    rough, exact = (
        linear_divergence(
            hidden.detach().to(kind).requires_grad_(),
            head.weight.detach().to(kind).requires_grad_(),
            full(*projected()),
        )
        for kind in (torch.bfloat16, torch.float32)
    )
    torch.testing.assert_close(rough.values, exact.values, rtol=0.05, atol=0.02)


def test_autocast_projects_in_its_type_and_gives_gradients_in_the_parameters() -> None:
    hidden = made(2, 3, WIDTH, seed=0, dtype=torch.float32).requires_grad_()
    weight = made(WORDS, WIDTH, seed=1, dtype=torch.float32).requires_grad_()
    teacher = full(*projected()).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_divergence(hidden, weight, teacher)
    narrow = linear_divergence(hidden.bfloat16(), weight.bfloat16(), teacher)
    torch.testing.assert_close(found.values, narrow.values, rtol=0, atol=0)
    assert {each.dtype for each in torch.autograd.grad(found.loss, (hidden, weight))} == {torch.float32}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"divergence": "kd"}, "divergence: expected one of kl, .* got 'kd'"),
        ({"teacher": torch.zeros(2, 4, WORDS)}, r"teacher: .*\(2, 3\), got \(2, 4\)"),
        ({"teacher": Projected(torch.zeros(6, 4), Head(torch.zeros(WORDS, 4)))}, r"teacher.hidden: .*\(6,\)"),
        (
            {"teacher": TopK(torch.zeros(2, 3, 2).long(), torch.zeros(2, 3, 1), torch.zeros(2, 3))},
            r"teacher.log_probabilities: .*\(2, 3, 2\), got \(2, 3, 1\)",
        ),
        ({"target": torch.zeros(6).long()}, r"target: .*\(6,\)"),
        ({"where": torch.ones(2, 2, dtype=torch.bool)}, r"where: .*\(2, 2\)"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Any], message: str) -> None:
    hidden, head = student()
    arguments = {"teacher": projected(), **changed}
    with pytest.raises(ValueError, match=message):
        linear_divergence(hidden, head, **arguments)


def test_each_sum_has_a_gradient_of_its_own_and_both_together_the_planned_one() -> None:
    hidden, head = student(soft_cap=3.0)
    options: dict[str, Any] = {"weight": 0.7, "target": TARGET, "target_weight": 0.3, "where": WHERE}
    found = linear_divergence(hidden, head, projected(), temperature=2.0, **options)
    logits = full(hidden, head)
    divergence = losses.kl(logits, full(*projected()), temperature=2.0, where=WHERE).sum()
    entropy = cross_entropy(logits[WHERE], TARGET[WHERE], reduction="sum")
    assert found.total_cross_entropy is not None
    asked = [
        (found.total, divergence),
        (found.total_cross_entropy, entropy),
        (0.7 * found.total + 0.3 * found.total_cross_entropy, 0.7 * divergence + 0.3 * entropy),
        (2 * found.total - found.total_cross_entropy, 2 * divergence - entropy),
    ]
    for ours, theirs in asked:
        torch.testing.assert_close(ours, theirs, **CLOSE)
        made = torch.autograd.grad(
            ours, [hidden, head.weight, head.bias], retain_graph=True, allow_unused=True
        )
        wanted = torch.autograd.grad(theirs, [hidden, head.weight, head.bias], retain_graph=True)
        for mine, other in zip(made, wanted, strict=True):
            torch.testing.assert_close(mine, other, **CLOSE)


def test_without_a_teacher_it_is_the_cross_entropy_of_the_words_that_there_are() -> None:
    hidden, head = student(words=WORDS + 3)
    found = linear_divergence(hidden, head._replace(words=WORDS), None, target=TARGET, where=WHERE)
    logits = full(hidden, head)[..., :WORDS]
    entropy = cross_entropy(logits[WHERE], TARGET[WHERE], reduction="sum")
    torch.testing.assert_close(found.loss, entropy, **CLOSE)
    for mine, theirs in zip(
        gradients(found.loss, hidden, head), gradients(entropy, hidden, head), strict=True
    ):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    with pytest.raises(ValueError, match="expected one, or a target"):
        linear_divergence(hidden, head, None)
