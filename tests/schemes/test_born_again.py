"""Generations: who teaches whom, and what changes hands between them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.schemes import BornAgain
from potstill.schemes.born_again import permuted
from tests.contracts.test_schemes import batch_of, network, supervised, train


def chain(**options: object) -> BornAgain:
    torch.manual_seed(0)
    students: list[nn.Module] = [network(2), network(2), network(3)]
    return BornAgain(students, None, Objective({"kl": {}}, supervised), **options)  # type: ignore[arg-type]


def test_each_generation_is_taught_by_the_one_before_as_it_ended() -> None:
    scheme, batch = chain(), batch_of(16)
    train(scheme, batch, 3)
    networks = list(scheme.networks.values())
    for place, generation in enumerate(list(scheme.generations.values())[1:]):
        assert generation.teacher is not None
        torch.testing.assert_close(generation.teacher.network.state_dict(), networks[place].state_dict())


def test_nobody_who_teaches_changes_by_a_bit() -> None:
    torch.manual_seed(0)
    teacher, students = network(4), [network(2), network(3), network(2)]
    scheme = BornAgain(students, teacher, Objective({"kl": {}}, supervised))
    given = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    kept: list[dict[str, Tensor]] = []
    for stage in scheme.stages:
        scheme.enter(stage.name)
        scheme.train()
        part = scheme.trainable(stage.name, stage.name)[stage.name]
        optimizer = torch.optim.SGD(part.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            scheme(batch_of(16), stage.name).loss.backward()
            optimizer.step()
        kept.append({name: tensor.clone() for name, tensor in scheme.student.state_dict().items()})
    assert any("running_mean" in name for name in given)
    assert all(torch.equal(tensor, given[name]) for name, tensor in teacher.state_dict().items())
    for before, one in zip(kept, scheme.networks.values(), strict=True):
        assert all(torch.equal(tensor, before[name]) for name, tensor in one.state_dict().items())


def test_a_restored_chain_goes_on_with_the_same_teacher() -> None:
    scheme, batch = chain(), batch_of(16)
    scheme.enter("generation1")
    optimizer = torch.optim.SGD(scheme.parts["generation1"].parameters(), lr=0.1)
    scheme(batch, "generation1").loss.backward()
    optimizer.step()
    scheme.enter("generation2")
    other = chain()
    for name, part in other.parts.items():
        part.load_state_dict(scheme.parts[name].state_dict())
    other.enter("generation2")
    torch.testing.assert_close(other(batch, "generation2").loss, scheme(batch, "generation2").loss)


def test_the_first_generation_has_labels_alone_without_a_teacher() -> None:
    scheme, batch = chain(), batch_of(4)
    assert list(scheme(batch, "generation1").parts) == ["labels"]
    assert sorted(scheme(batch, "generation2").parts) == ["kl", "labels"]
    assert scheme(batch, "generation1").parts["labels"].weight == 1


def test_confident_weights_average_one_and_rank_samples() -> None:
    scheme, batch = chain(knowledge="weighted"), batch_of(8)
    generation = scheme.generations["generation2"]
    assert generation.objective.supervised is not None
    signals = generation.parts["student"](batch.input("student"))
    plain, weighted = supervised(signals, batch), generation.objective.supervised(signals, batch)
    weights = (weighted / plain).detach()
    assert float(weights.mean()) == pytest.approx(1, rel=1e-5)
    confidence = generation.objective.supervised.teacher(batch).output.softmax(1).amax(1)  # type: ignore[attr-defined]
    torch.testing.assert_close(weights, confidence / confidence.mean())
    assert list(scheme(batch, "generation2").parts) == ["labels"]


def test_permuted_knowledge_keeps_the_largest_and_the_rest_as_a_set() -> None:
    logits = torch.randn(64, 7)
    shuffled = permuted(logits, torch.arange(64), view=3)
    assert torch.equal(shuffled.argmax(1), logits.argmax(1))
    assert torch.equal(shuffled.amax(1), logits.amax(1))
    assert torch.equal(shuffled.sort(1).values, logits.sort(1).values)
    assert not torch.equal(shuffled, logits)
    assert torch.equal(shuffled, permuted(logits, torch.arange(64), view=3))
    assert not torch.equal(shuffled, permuted(logits, torch.arange(64), view=4))


def test_no_generation_is_refused() -> None:
    with pytest.raises(UserError, match="at least one generation"):
        BornAgain([], None, Objective({"kl": {}}, supervised))


def test_what_paraphrases_a_fixed_teacher_is_refused() -> None:
    objective = Objective({"factor_transfer": {}}, supervised)
    with pytest.raises(UserError, match=r"distill\.factor_transfer: paraphrases one fixed teacher"):
        BornAgain([network(2), network(2)], None, objective, example=batch_of(2))
