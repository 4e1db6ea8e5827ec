"""A teacher answers and never changes; an ensemble averages probabilities."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from potstill.batch import Batch
from potstill.errors import UserError
from potstill.teachers import Ensemble, Frozen, Teacher, as_teacher


def batch_of(rows: int = 4) -> Batch:
    torch.manual_seed(0)
    inputs = {"student": torch.randn(rows, 3), "teacher": torch.randn(rows, 3)}
    return Batch(inputs, None, None, torch.arange(rows))


def network(classes: int = 5, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, classes))


def test_frozen_answers_to_the_teachers_inputs_in_eval_mode() -> None:
    model, batch = network(), batch_of()
    teacher = Frozen(model)
    assert torch.equal(teacher(batch).output, model(batch.inputs["teacher"]))
    assert torch.equal(teacher(batch).output, teacher(batch).output)


def test_nothing_makes_a_frozen_teacher_train() -> None:
    model, batch = network(), batch_of()
    teacher = Frozen(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    model.train()
    output = teacher(batch).output
    assert not output.requires_grad
    assert not output.is_inference()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_taps_and_retapping() -> None:
    teacher = Frozen(network(), ["0"])
    again = teacher.tapping(["1", "3:input"])
    assert list(teacher(batch_of()).taps) == ["0"]
    assert list(again(batch_of()).taps) == ["1", "3:input"]
    assert again.network is teacher.network
    with pytest.raises(UserError, match="teacher: no layer 'x'"):
        teacher.tapping(["x"])


def test_ensemble_averages_probabilities_not_logits() -> None:
    members, batch = [network(seed=seed) for seed in range(3)], batch_of()
    for member in members:
        member.eval()
        with torch.no_grad():
            member[3].weight.mul_(10)
    output = Ensemble(members)(batch).output
    probabilities = torch.stack([member(batch.inputs["teacher"]).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(output.exp(), probabilities.detach())
    logits = torch.stack([member(batch.inputs["teacher"]) for member in members]).mean(0)
    assert (output.exp() - logits.softmax(1)).abs().max() > 0.01


def test_ensemble_stays_finite_at_extreme_logits() -> None:
    member = nn.Linear(3, 2)
    with torch.no_grad():
        member.weight.zero_()
        member.bias.copy_(torch.tensor([1000.0, -1000.0]))
    assert Ensemble([member, copy.deepcopy(member)])(batch_of()).output.isfinite().all()


def test_ensemble_of_frozen_ones_with_taps_of_the_first() -> None:
    first, second = Frozen(network()), Frozen(network(seed=1))
    ensemble = Ensemble([first, second]).tapping(["0"])
    answer = ensemble(batch_of())
    assert torch.equal(answer.taps["0"], first.network[0](batch_of().inputs["teacher"]))  # type: ignore[index]
    assert ensemble.network is first.network
    assert not ensemble.train().training


def test_ensemble_members_must_agree_on_classes() -> None:
    with pytest.raises(UserError, match=r"outputs of one shape, got \[\(4, 5\), \(4, 6\)\]"):
        Ensemble([network(5), network(6)])(batch_of())
    with pytest.raises(UserError, match="at least one teacher"):
        Ensemble([])


def test_what_counts_as_a_teacher() -> None:
    frozen = Frozen(network())
    assert as_teacher(frozen) is frozen
    assert isinstance(Ensemble([frozen]), Teacher)
    wrapped = as_teacher(network())
    assert isinstance(wrapped, Frozen)


def test_a_teacher_keeps_a_graph_by_its_input_only_where_that_is_tapped() -> None:
    model, batch = network(), batch_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    teacher = Frozen(model, ["0"]).tapping([":input", "0"])
    answer = teacher(batch)
    torch.autograd.grad(answer.output.sum(), [answer.taps[":input"], answer.taps["0"]])
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert not batch.inputs["teacher"].requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert not teacher(batch).output.requires_grad
    assert torch.equal(answer.output.detach(), Frozen(model)(batch).output)


def test_all_of_an_ensemble_answer_by_one_input() -> None:
    members, batch = [network(seed=seed) for seed in range(2)], batch_of()
    answer = Ensemble(members).tapping([":input", "0"])(batch)
    assert list(answer.taps) == [":input", "0"]
    (gradient,) = torch.autograd.grad(answer.output[:, 1].sum(), answer.taps[":input"])
    inputs = batch.inputs["teacher"].clone().requires_grad_()
    mean = torch.stack([member(inputs).softmax(1) for member in members]).mean(0)
    (expected,) = torch.autograd.grad(mean[:, 1].log().sum(), inputs)
    torch.testing.assert_close(gradient, expected)
    assert not Ensemble(members).tapping(["0"])(batch).output.requires_grad
