"""Peers: one forward pass each, others detached, any architecture."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.schemes import Mutual
from tests.contracts.test_schemes import batch_of, network, supervised

TERMS = {"labels": {"weight": 1}, "kl": {"weight": 1, "temperature": 1}}


def peers(count: int = 3) -> Mutual:
    torch.manual_seed(0)
    return Mutual([network(2 + number) for number in range(count)], Objective(TERMS, supervised))


def test_the_loss_is_the_papers() -> None:
    scheme, batch = peers(), batch_of(8)
    scheme.eval()
    logits = [peer(batch.input("student")) for peer in scheme.networks.values()]
    assert batch.target is not None
    expected = torch.zeros(())
    for ours in logits:
        expected = expected + cross_entropy(ours, batch.target)
        others = [other for other in logits if other is not ours]
        for other in others:
            divergence = kl_div(
                log_softmax(ours, 1), log_softmax(other, 1), reduction="batchmean", log_target=True
            )
            expected = expected + divergence / len(others)
    torch.testing.assert_close(scheme(batch).loss, expected)


def test_a_peer_never_learns_through_another() -> None:
    scheme, batch = peers(2), batch_of(8)
    parts = scheme(batch).parts
    sum((part.total for name, part in parts.items() if name.startswith("peer1")), torch.zeros(())).backward()
    first, second = scheme.networks.values()
    assert all(parameter.grad is not None for parameter in first.parameters())
    assert all(parameter.grad is None for parameter in second.parameters())


def test_each_peer_runs_once_a_batch() -> None:
    scheme, calls = peers(), {"count": 0}
    for peer in scheme.networks.values():
        peer.register_forward_hook(lambda *_: calls.__setitem__("count", calls["count"] + 1))
    scheme(batch_of(8))
    assert calls["count"] == 3


def test_peers_may_have_views_of_their_own() -> None:
    scheme, batch = peers(2), batch_of(8)
    scheme.eval()
    same = scheme(batch).loss
    batch.inputs["peer2"] = batch.input("student").flip(3)  # type: ignore[index]
    assert not torch.equal(scheme(batch).loss, same)


def test_bad_peers_are_named() -> None:
    with pytest.raises(UserError, match="at least two peers, got 1"):
        Mutual([network(2)], Objective(TERMS, supervised))
    with pytest.raises(UserError, match="example"):
        Mutual([network(2), network(3)], Objective({"attention_transfer": {}}, supervised))
