"""Exits taught by the deepest answer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.models.exits import WithExits
from potstill.schemes import DeepSupervision
from tests.contracts.test_schemes import batch_of, network, supervised, train


def exits(terms: dict[str, object], **options: object) -> DeepSupervision:
    torch.manual_seed(0)
    student = WithExits(network(2), ["0"], batch_of(2).input("student"))
    return DeepSupervision(student, Objective(terms, supervised), **options)  # type: ignore[arg-type]


def test_the_loss_is_the_papers() -> None:
    terms = {"labels": {"weight": 0.7}, "kl": {"weight": 0.3 / 9, "temperature": 3}}
    scheme, batch = exits(terms), batch_of(8)
    scheme.eval()
    answer = scheme.student(batch.input("student"))
    shallow, deepest, target = answer.taps["exit:0"], answer.output, batch.target
    assert target is not None
    soft = -(torch.softmax(deepest.detach() / 3, 1) * log_softmax(shallow / 3, 1)).sum(1).mean()
    entropy = -(torch.softmax(deepest / 3, 1) * log_softmax(deepest / 3, 1)).sum(1).mean().detach()
    expected = 0.7 * cross_entropy(shallow, target) + 0.3 * (soft - entropy) + cross_entropy(deepest, target)
    torch.testing.assert_close(scheme(batch).loss, expected)


def test_the_deepest_never_learns_from_an_exit() -> None:
    scheme, batch = exits({"kl": {}}), batch_of(8)
    scheme.eval()
    scheme(batch).parts["0.kl"].total.backward()
    last = scheme.student.model[-1]
    assert last.weight.grad is None
    assert scheme.student.exits[0].head.weight.grad is not None


def test_an_ensemble_of_exits_teaches_all() -> None:
    scheme, batch = exits({"kl": {"temperature": 1}}, taught_by="ensemble"), batch_of(8)
    scheme.eval()
    answer = scheme.student(batch.input("student"))
    mean = (torch.softmax(answer.output, 1) + torch.softmax(answer.taps["exit:0"], 1)) / 2
    parts = scheme(batch).parts
    for name, logits in (("0.kl", answer.taps["exit:0"]), ("deepest.kl", answer.output)):
        expected = kl_div(log_softmax(logits, 1), mean.log(), reduction="batchmean", log_target=True)
        torch.testing.assert_close(parts[name].mean, expected)


def test_a_frozen_backbone_stays_as_it_is() -> None:
    scheme = exits({"kl": {}, "feature_mse": {"weight": 0.01}}, train_backbone=False)
    before = copy.deepcopy(scheme.student.model.state_dict())
    train(scheme, batch_of(16), 3)
    torch.testing.assert_close(scheme.student.model.state_dict(), before, rtol=0, atol=0)


def test_a_frozen_backbone_is_computed_as_far_as_its_last_exit_while_labels_alone_teach() -> None:
    scheme = exits({"labels": {"weight": 0.7}, "kl": {"from": 0.5}}, train_backbone=False)
    ran: list[str] = []
    scheme.student.model[-1].register_forward_hook(lambda *_: ran.append("last"))
    batch = batch_of(8)
    scheme.progress = 0.4
    parts = scheme(batch).parts
    assert not ran
    assert list(parts) == ["0.labels"]
    scheme.progress = 0.6
    whole = scheme(batch).parts
    assert ran == ["last"]
    assert set(whole) == {"0.labels", "0.kl"}
    torch.testing.assert_close(whole["0.labels"].mean, parts["0.labels"].mean, rtol=0, atol=0)


@pytest.mark.parametrize("term", ["rkd_distance", "similarity_preserving", "attention_transfer"])
def test_exits_learn_by_relations_and_attention_too(term: str) -> None:
    scheme, batch = exits({"labels": {"weight": 0.7}, term: {"weight": 0.1}}), batch_of(16)
    values = train(scheme, batch, 10)[0]
    assert values[-1] < values[0]
    assert f"0.{term}" in scheme(batch).parts


def test_terms_that_cannot_be_are_named() -> None:
    with pytest.raises(UserError, match=r"distill\.fsp"):
        exits({"fsp": {}})
    with pytest.raises(UserError, match=r"distill\.feature_mse\.layers"):
        exits({"feature_mse": {"layers": ["0"]}})
