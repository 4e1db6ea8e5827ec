"""Offline: the teacher stays out of state and gradient, the student and its adapters learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.schemes import Offline, Stage
from potstill.teachers import Ensemble, Frozen


def supervised(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None
    return cross_entropy(signals.output, batch.target, reduction="none")


def network(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(width * 16, 3),
    )


def batch_of(rows: int = 6) -> Batch:
    torch.manual_seed(rows)
    images = torch.randn(rows, 1, 8, 8)
    inputs = {"student": images, "teacher": 2 * images}
    return Batch(inputs, torch.arange(rows) % 3, None, torch.arange(rows))


def scheme_of(terms: dict[str, Any], **options: Any) -> Offline:
    torch.manual_seed(0)
    return Offline(network(2), network(4), Objective(terms, supervised, **options), example=batch_of(2))


ALL = {"kl": {}, "feature_mse": {}, "attention_transfer": {}}


def test_state_and_parameters_hold_student_and_adapters_only() -> None:
    scheme = scheme_of(ALL)
    names = [name for name, _ in scheme.named_parameters()]
    assert all(name.startswith("parts.student.") for name in scheme.state_dict())
    assert "parts.student.adapters.feature_mse:0.project.weight" in names
    num_student = len(list(scheme.student.parameters()))
    assert len(names) == num_student + 1
    assert list(scheme.trainable("train", "train")) == ["student"]
    assert scheme.stages == (Stage("train", 1.0, ("train",)),)


def test_each_sees_its_own_inputs() -> None:
    scheme, batch = scheme_of({"kl": {}}), batch_of()
    scheme.eval()
    step = scheme(batch)
    teacher = scheme.teacher
    assert isinstance(teacher, Frozen)
    assert torch.equal(step.output.output, scheme.student(batch.inputs["student"]))
    seen = teacher.network(batch.inputs["teacher"])
    expected = scheme.objective.shares(step.output, Signals(seen), batch)["kl"].total
    torch.testing.assert_close(step.parts["kl"].total, expected)


def test_teacher_moves_with_the_scheme_and_never_trains() -> None:
    scheme = scheme_of(ALL).double().train()
    teacher = scheme.teacher
    assert isinstance(teacher, Frozen)
    assert next(teacher.parameters()).dtype == torch.float64
    assert not teacher.training
    images = batch_of().inputs["student"].double()
    step = scheme(Batch({"student": images}, batch_of().target, None, torch.arange(6)))
    assert step.loss.dtype == torch.float64


def test_progress_closes_windows_and_spares_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    scheme = scheme_of({"kl": {"until": 0.5}})
    assert sorted(scheme(batch_of()).parts) == ["kl", "labels"]
    scheme.progress = 0.5
    monkeypatch.setattr(Frozen, "forward", lambda *_: pytest.fail("the teacher was asked for nothing"))
    assert sorted(scheme(batch_of()).parts) == ["labels"]


@pytest.mark.parametrize(
    ("terms", "progress"),
    [
        ({"feature_mse": {"until": 0.5}}, 0.9),
        ({"labels": {"from": 0.5}, "feature_mse": {}}, 0.0),
        ({"labels": {"from": 0.5}, "attention_transfer": {"layers": ["0"]}}, 0.0),
    ],
)
def test_every_parameter_has_a_gradient_in_every_step(terms: dict[str, Any], progress: float) -> None:
    scheme = scheme_of(terms)
    scheme.progress = progress
    scheme(batch_of()).loss.backward()
    assert all(parameter.grad is not None for parameter in scheme.parameters())


def test_gradient_of_what_no_part_reads_is_zero_even_where_it_is_not_finite() -> None:
    scheme = scheme_of({"feature_mse": {"until": 0.5}})
    scheme.progress = 0.9
    adapters = dict(scheme.parts.named_parameters())
    weight = adapters["student.adapters.feature_mse:0.project.weight"]
    with torch.no_grad():
        weight.fill_(float("inf"))
    scheme(batch_of()).loss.backward()
    student = [parameter.grad for parameter in scheme.student.parameters()]
    assert weight.grad is not None
    assert not weight.grad.any()
    assert any(gradient is not None and gradient.any() for gradient in student)


def test_loop_can_wrap_the_part() -> None:
    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, inputs: Tensor) -> Any:
            self.calls += 1
            return self.module(inputs)

    scheme = scheme_of(ALL)
    student = scheme.student
    wrapper = Wrapped(scheme.parts["student"])
    scheme.parts["student"] = wrapper
    scheme(batch_of()).loss.backward()
    assert wrapper.calls == 1
    assert scheme.student is student
    assert scheme.trainable()["student"] is wrapper


def test_counts_without_a_forward_pass_are_those_of_the_step() -> None:
    scheme, batch = scheme_of(ALL), batch_of()
    assert scheme.counts(batch, "train") == {name: part.count for name, part in scheme(batch).parts.items()}


def test_control_is_the_student_with_labels_alone() -> None:
    control = scheme_of(ALL).control(network(2))
    step = control(batch_of())
    assert list(step.parts) == ["labels"]
    torch.testing.assert_close(step.loss, step.parts["labels"].mean)
    assert control.teacher is None


def test_one_objective_serves_many_schemes() -> None:
    objective = Objective({"feature_mse": {}}, supervised)
    first = Offline(network(2), network(4), objective, example=batch_of(2))
    second = Offline(network(3), network(4), objective, example=batch_of(2))
    assert first.objective.plan[0].adapter == "1x1 conv 2->4"
    assert second.objective.plan[0].adapter == "1x1 conv 3->4"
    assert objective.plan == []


def test_ensemble_and_frozen_teachers() -> None:
    torch.manual_seed(0)
    for teacher in (Frozen(network(4)), Ensemble([network(4), network(5)])):
        scheme = Offline(network(2), teacher, Objective(ALL, supervised), example=batch_of(2))
        assert scheme(batch_of()).loss.isfinite()


def test_what_is_missing_is_said_at_once() -> None:
    with pytest.raises(UserError, match=r"teacher: missing; distill.kl has nothing"):
        Offline(network(2), None, Objective({"kl": {}}, supervised))
    with pytest.raises(UserError, match="example: missing"):
        Offline(network(2), network(4), Objective({"feature_mse": {}}, supervised))
    with pytest.raises(UserError, match=r"the student has no layer 'layer1'; known: 0, 0.0"):
        scheme_of({"feature_mse": {"layers": ["layer1"]}})
    with pytest.raises(ValueError, match="one phase, 'train', got 'generator'"):
        scheme_of({"kl": {}})(batch_of(), "generator")


def test_class_counts_must_agree() -> None:
    teacher = nn.Sequential(network(4), nn.Linear(3, 7))
    scheme = Offline(network(2), teacher, Objective({"kl": {}}, supervised))
    with pytest.raises(UserError, match=r"^distill.kl: .*\(6, 3\).*\(6, 7\)"):
        scheme(batch_of())


def test_compiled_part_gives_the_same_loss() -> None:
    scheme = scheme_of(ALL)
    expected = scheme(batch_of()).loss
    torch.compiler.reset()
    scheme.parts["student"] = torch.compile(scheme.parts["student"], backend="aot_eager")  # type: ignore[assignment]
    torch.testing.assert_close(scheme(batch_of()).loss, expected)


def test_stages_of_cifar_resnets_of_any_depth_pair_up() -> None:
    from potstill.models.cifar import resnet8, resnet20

    images = torch.randn(2, 3, 32, 32)
    example = Batch({"student": images}, torch.arange(2), None, torch.arange(2))
    scheme = Offline(
        resnet8(), resnet20(), Objective({"attention_transfer": {}}, supervised), example=example
    )
    assert scheme.objective.student_paths == scheme.objective.teacher_paths == ("layer1", "layer2", "layer3")
    assert scheme(example).loss.isfinite()
