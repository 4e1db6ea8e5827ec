"""A teacher that answers once for all trainings that see the same batches."""

from __future__ import annotations

import copy

import torch
from torch import nn

from potstill.answers import Answers, Remembered
from potstill.batch import Batch
from potstill.matching.objective import Objective
from potstill.schemes import Offline
from potstill.teachers import Frozen
from tests.contracts.test_schemes import batch_of, network, supervised

TERMS = {"kl": {}, "attention_transfer": {}}


def scheme(teacher: nn.Module) -> Offline:
    torch.manual_seed(1)
    return Offline(network(2), teacher, Objective(TERMS, supervised), example=batch_of(2))


def test_the_second_training_sees_the_same_answers_without_the_teacher() -> None:
    teacher, answers, batch = network(4), Answers(1 << 20), batch_of(8)
    plain = scheme(Frozen(copy.deepcopy(teacher)))(batch).loss
    for _ in range(2):
        torch.testing.assert_close(scheme(Remembered(teacher, answers))(batch).loss, plain, rtol=0, atol=0)
    again = scheme(Remembered(teacher, answers))
    again(batch)
    assert isinstance(again.teacher, Remembered)
    assert again.teacher.computed == 0


def test_other_views_samples_and_layers_are_computed() -> None:
    answers, batch = Answers(1 << 20), batch_of(8)
    teacher = Remembered(network(4), answers, ["0"])
    teacher(batch)
    teacher(Batch(batch.inputs, None, None, batch.index, view=1))
    teacher(Batch(batch.inputs, None, None, batch.index + 1))
    assert teacher.computed == 3
    deeper = teacher.tapping(["0", "1"])
    assert isinstance(deeper, Remembered)
    assert set(deeper(batch).taps) == {"0", "1"}
    assert deeper.computed == 1


def test_another_seed_forgets() -> None:
    answers, batch = Answers(1 << 20), batch_of(4)
    answers.begin(0)
    teacher = Remembered(network(4), answers)
    teacher(batch)
    answers.begin(0)
    teacher(batch)
    assert (teacher.computed, answers.size > 0) == (1, True)
    answers.begin(1)
    assert answers.size == 0
    teacher(batch)
    assert teacher.computed == 2


def test_a_full_store_computes_and_stays_right() -> None:
    batch, plain = batch_of(8), network(4)
    teacher = Remembered(plain, Answers(most_bytes=10))
    for _ in range(2):
        torch.testing.assert_close(teacher(batch).output, plain(batch.input("student") + 0.1))
    assert teacher.computed == 2


def test_what_is_differentiated_by_its_input_is_not_remembered() -> None:
    assert isinstance(Remembered(network(4), Answers(1 << 20)).tapping([":input"]), Frozen)


def test_it_stays_in_eval_mode_and_out_of_the_state() -> None:
    teacher = Remembered(network(4), Answers(1 << 20))
    assert not any(module.training for module in teacher.train().modules())
    assert not any("answers" in name for name in teacher.state_dict())
