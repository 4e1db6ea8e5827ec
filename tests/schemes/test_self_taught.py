"""Students taught by their own average, or by smoothed labels."""

from __future__ import annotations

import copy

import pytest
import torch

from potstill.batch import Batch
from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.schemes import MeanTeacher, Offline, SmoothedLabels
from tests.contracts.test_schemes import batch_of, network, supervised


def test_the_average_follows_by_its_decay() -> None:
    torch.manual_seed(0)
    scheme = MeanTeacher(network(2), Objective({"kl": {}}, supervised), decay=0.9)
    average, student = scheme.networks["average"], scheme.student
    before = copy.deepcopy(average.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    scheme.stepped(1)  # the first steps use less: 1 - 1/2
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.5)
    scheme.stepped(1000)
    for name, parameter in average.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.5 + 0.05)
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_the_average_moves_between_steps_alone() -> None:
    torch.manual_seed(0)
    scheme = MeanTeacher(network(2), Objective({"kl": {}}, supervised))
    scheme.train()
    before = {name: tensor.clone() for name, tensor in scheme.networks["average"].state_dict().items()}
    scheme(batch_of(8)).loss.backward()
    assert any("running_mean" in name for name in before)
    after = scheme.networks["average"].state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_average_is_kept_with_the_parts() -> None:
    scheme = MeanTeacher(network(2), Objective({"kl": {}}, supervised))
    assert any(name.startswith("parts.average") for name in scheme.state_dict())
    assert list(scheme.trainable()) == ["student"]


def test_smoothed_labels_teach_through_offline() -> None:
    scheme = Offline(
        network(2), SmoothedLabels(3), Objective({"kl": {"temperature": 20}}, supervised), example=batch_of(2)
    )
    assert sorted(scheme(batch_of(8)).parts) == ["kl", "labels"]


def test_smoothed_labels_refuse_what_they_cannot_do() -> None:
    with pytest.raises(UserError, match="chance"):
        SmoothedLabels(10, correct=0.1)
    with pytest.raises(UserError, match="need labels"):
        SmoothedLabels(3)(Batch({"student": torch.zeros(1, 3)}, None, None, torch.arange(1)))
    with pytest.raises(UserError, match="no layers"):
        SmoothedLabels(3).tapping(["0"])
