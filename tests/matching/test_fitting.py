"""Adapters that start at their best fit: the least squares of a naive oracle, and nothing else touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from potstill.batch import Batch, Signals
from potstill.errors import UserError
from potstill.matching.adapters import Adapter, build
from potstill.matching.objective import Objective
from potstill.schemes import Mutual, Offline
from potstill.schemes.offline import StudentPart


def weight_of(adapter: Adapter) -> Tensor:
    assert isinstance(adapter.project, nn.Conv2d | nn.Linear)
    return adapter.project.weight


def adapters_of(scheme: Offline) -> nn.ModuleDict:
    part = scheme.parts["student"]
    assert isinstance(part, StudentPart)
    return part.adapters


def test_a_layer_that_is_a_linear_map_of_the_other_is_met() -> None:
    torch.manual_seed(0)
    student, mixing = torch.randn(4, 3, 5, 5), torch.randn(6, 3)
    teacher = torch.einsum("oc,nchw->nohw", mixing, student)
    adapter = build(student.shape, teacher.shape)
    assert adapter is not None
    assert adapter.fit(student, teacher) > 0.999
    torch.testing.assert_close(adapter(student), teacher, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((6, 3, 4, 4), (6, 5, 4, 4)), ((9, 3), (9, 5)), ((4, 6, 3), (4, 6, 5)), ((9, 3, 4, 4), (9, 5))],
)
def test_it_is_the_least_squares_of_numpy(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    ours, theirs = torch.randn(student) + 1.0, torch.randn(teacher) - 0.5
    adapter = build(student, teacher)
    assert adapter is not None
    explained = adapter.fit(ours, theirs)
    pooled = ours.mean(dim=(2, 3)) if adapter.pool_away else ours
    rows = [each.movedim(1, -1) if each.dim() == 4 else each for each in (pooled, theirs)]
    inputs, wanted = (each.reshape(-1, each.shape[-1]).double().numpy() for each in rows)
    if isinstance(adapter.project, nn.Linear):
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    best = np.linalg.lstsq(inputs, wanted, rcond=None)[0]
    left = np.square(wanted - inputs @ best).sum()
    spread = np.square(wanted - wanted.mean(axis=0)).sum()
    assert explained == pytest.approx(1 - left / spread, abs=1e-4)  # the ridge is small
    error = float((adapter(ours) - theirs).detach().square().sum())
    assert error == pytest.approx(left, rel=1e-4)


def test_tokens_that_are_not_there_do_not_count() -> None:
    torch.manual_seed(2)
    student, teacher = torch.randn(3, 8, 2), torch.randn(3, 8, 4)
    there = torch.arange(8)[None] < torch.tensor([[8], [5], [3]])
    first, second = build(student.shape, teacher.shape), build(student.shape, teacher.shape)
    assert first is not None
    assert second is not None
    first.fit(student, teacher, there)
    second.fit(
        student.masked_fill(~there[..., None], 50.0), teacher.masked_fill(~there[..., None], -9.0), there
    )
    assert torch.equal(weight_of(first), weight_of(second))


def test_a_student_with_dead_channels_is_fitted_all_the_same() -> None:
    adapter = build((4, 3, 4, 4), (4, 5, 4, 4))
    assert adapter is not None
    assert adapter.fit(torch.zeros(4, 3, 4, 4), torch.randn(4, 5, 4, 4)) == pytest.approx(0.0, abs=0.1)
    assert torch.isfinite(weight_of(adapter)).all()


def network(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Dropout(), nn.Conv2d(width, 1, 1))


def batch_of(rows: int = 6) -> Batch:
    torch.manual_seed(rows)
    images = torch.randn(rows, 1, 8, 8)
    return Batch({"student": images, "teacher": images}, None, None, torch.arange(rows))


def scheme_of(example: Batch, **options: Any) -> Offline:
    torch.manual_seed(0)
    terms = {"image_l1": {}, "feature_mse": {"layers": ["1"], **options}}
    return Offline(network(2), network(4), Objective(terms), example=example)


def loss_of(scheme: Offline, batch: Batch) -> float:
    scheme.student[2].eval()  # type: ignore[index]
    return float(scheme(batch).parts["feature_mse"].total.detach())


def test_the_first_loss_is_below_any_other_adapters_and_nothing_else_changes() -> None:
    batch = batch_of()
    random, fitted = scheme_of(batch), scheme_of(batch, adapter="fitted")
    for name, value in fitted.student.state_dict().items():
        assert torch.equal(value, random.student.state_dict()[name]), name
    assert fitted.student.training
    adapter = adapters_of(fitted)["feature_mse:0"]
    assert isinstance(adapter, Adapter)
    best = loss_of(fitted, batch)
    assert best < loss_of(random, batch)
    start = weight_of(adapter).detach().clone()
    for seed in range(20):
        torch.manual_seed(seed)
        with torch.no_grad():
            weight_of(adapter).copy_(start + 0.1 * torch.randn(start.shape))
        assert loss_of(fitted, batch) > best
    line = fitted.objective.describe()[-1]
    assert "1x1 conv 2->4, fitted (explains " in line


def test_the_same_seed_gives_the_same_fit() -> None:
    first, second = scheme_of(batch_of(), adapter="fitted"), scheme_of(batch_of(), adapter="fitted")
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_equal_shapes_have_nothing_to_fit() -> None:
    terms = {"image_l1": {}, "feature_mse": {"layers": ["1"], "adapter": "fitted"}}
    scheme = Offline(network(4), network(4), Objective(terms), example=batch_of())
    assert not adapters_of(scheme)


def test_too_few_positions_are_told() -> None:
    objective = Objective({"image_l1": {}, "feature_mse": {"layers": ["1"], "adapter": "fitted"}})
    with pytest.raises(
        UserError, match=r"distill\.feature_mse\.adapter: '1': .*as many positions .*\(40\), got 36"
    ):
        Offline(network(40), network(4), objective, example=batch_of(1))


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (
            {"kl": {"adapter": "fitted"}},
            r"distill\.kl\.adapter: fitted has no meaning for kl, which has no adapter",
        ),
        (
            {"activation_boundary": {"adapter": "fitted"}},
            r"activation_boundary, which has an adapter that ends",
        ),
        (
            {"feature_mse": {"adapter": "best"}},
            r"distill\.feature_mse\.adapter: expected one of random, fitted, got 'best'",
        ),
    ],
)
def test_bad_settings_are_named(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Objective(terms)


def test_peers_have_nothing_to_fit_to() -> None:
    terms = {"feature_mse": {"layers": ["1"], "adapter": "fitted"}}

    def supervised(signals: Signals, batch: Batch) -> Tensor:
        return signals.output.square().mean(dim=(1, 2, 3))

    with pytest.raises(UserError, match=r"distill\.feature_mse\.adapter: fitted has no meaning where peers"):
        Mutual([network(2), network(4)], Objective(terms, supervised), example=batch_of())
