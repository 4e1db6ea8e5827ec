"""Samples leave where the policy says, what they skip is not computed, and answers keep their order."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from potstill.deploy.early_exit import EarlyExit, load_policy, save_policy
from potstill.deploy.exit_runtime import KINDS, Judge, Policy
from potstill.errors import UserError
from potstill.models.exits import WithExits
from tests.deploy.parts import images, network

NEVER = math.inf


@pytest.fixture(scope="module")
def small() -> WithExits:
    return network()


def every_answer(small: WithExits, inputs: Tensor) -> Tensor:
    """Logits of all exits, ``(exits, N, classes)``."""
    with torch.no_grad():
        signals = small(inputs)
    return torch.stack([*(signals.taps[f"exit:{path}"] for path in small.paths), signals.output])


def middle(small: WithExits, kind: str) -> Policy:
    """A policy by which some samples take every exit."""
    if kind == "patience":
        return Policy(kind, (NEVER, 2.0))
    answers = every_answer(small, images(200)).numpy()
    judge = Judge(Policy(kind, (0.0, 0.0)))
    thresholds = [float(np.quantile(judge.score(number, answers[number]), 0.6)) for number in range(2)]
    return Policy(kind, (thresholds[0], thresholds[1]))


def oracle(answers: Tensor, policy: Policy) -> list[int]:
    """The exit of each sample, one by one, by the definitions."""
    taken = []
    for sample in range(answers.shape[1]):
        run, before = 0, -1
        for number in range(len(answers)):
            logits = answers[number, sample].double() / policy.temperatures[number]
            probabilities = logits.softmax(dim=0).tolist()
            first, second = sorted(probabilities, reverse=True)[:2]
            run = run + 1 if int(logits.argmax()) == before else 1
            before = int(logits.argmax())
            entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
            score = {
                "probability": first,
                "margin": first - second,
                "entropy": 1 - entropy / math.log(len(probabilities)),
                "patience": run,
            }[policy.kind]
            if number == len(answers) - 1 or score >= policy.thresholds[number]:
                taken.append(number)
                break
    return taken


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 61])
def test_samples_leave_by_the_definition_and_keep_their_order(
    small: WithExits, kind: str, count: int
) -> None:
    inputs = images(count, seed=5)
    policy = middle(small, kind)
    answers = every_answer(small, inputs)
    left = EarlyExit(small, policy, images(2))(inputs)
    assert left.exits.tolist() == oracle(answers, policy)
    torch.testing.assert_close(left.logits, answers[left.exits, torch.arange(count)], rtol=1e-4, atol=1e-4)
    if count == 61:
        assert len(left.exits.unique()) == (2 if kind == "patience" else 3)


def test_a_temperature_moves_the_exits(small: WithExits) -> None:
    inputs = images(40)
    policy = Policy("probability", (0.7, 0.7), (3.0, 0.5, 1.0))
    left = EarlyExit(small, policy, images(2))(inputs)
    assert left.exits.tolist() == oracle(every_answer(small, inputs), policy)
    plain = EarlyExit(small, Policy("probability", (0.7, 0.7)), images(2))(inputs)
    assert plain.exits.tolist() != left.exits.tolist()


def test_what_is_skipped_is_not_computed(small: WithExits) -> None:
    counts: list[list[int]] = []

    class Counting(nn.Module):
        def __init__(self, part: nn.Module, number: int) -> None:
            super().__init__()
            self.part, self.number = part, number

        def forward(self, *needed: Tensor) -> Any:
            counts.append([self.number, len(needed[0])])
            return self.part(*needed)

    runtime = EarlyExit(small, middle(small, "margin"), images(2))
    assert runtime.reason == ""
    parts = tuple(Counting(part, number) for number, part in enumerate(runtime.segments.parts))
    object.__setattr__(runtime.segments, "parts", parts)
    taken = runtime(images(50)).exits.bincount(minlength=3).tolist()
    assert counts == [[0, 50], [1, 50 - taken[0]], [2, taken[2]]]
    counts.clear()
    EarlyExit.forward(runtime, images(0))
    assert counts == [[0, 0]]
    runtime.policy = Policy("probability", (0.0, 0.0))
    counts.clear()
    assert runtime(images(9)).exits.tolist() == [0] * 9
    assert counts == [[0, 9]]


def test_an_exit_where_nobody_can_leave_is_not_asked(small: WithExits) -> None:
    class Unasked(nn.Module):
        def forward(self, *needed: Tensor) -> Any:
            raise AssertionError("its answer is not needed")

    inputs = images(30, seed=3)
    policy = Policy("probability", (math.inf, 0.6))
    runtime = EarlyExit(small, policy, images(2))
    runtime.heads = [Unasked(), *runtime.heads[1:]]
    left = runtime(inputs)
    assert left.exits.tolist() == oracle(every_answer(small, inputs), policy)
    assert 0 < left.exits.eq(1).sum() < 30
    assert runtime(images(0)).logits.shape == (0, left.logits.shape[1])
    runtime.policy = Policy("patience", (math.inf, 2.0))  # an answer that counts at the next exit
    with pytest.raises(AssertionError, match="not needed"):
        runtime(inputs)


def test_answers_do_not_depend_on_the_batch(small: WithExits) -> None:
    runtime = EarlyExit(small, middle(small, "entropy"), images(2))
    inputs = images(23, seed=2)
    whole = runtime(inputs)
    for size in (1, 5):
        pieces = [runtime(batch) for batch in inputs.split(size)]
        assert torch.equal(torch.cat([piece.exits for piece in pieces]), whole.exits)
        found = torch.cat([piece.logits for piece in pieces])
        torch.testing.assert_close(found, whole.logits, rtol=1e-4, atol=1e-4)


def test_a_network_that_cannot_be_cut_is_computed_whole_and_says_so() -> None:
    stubborn = network(choice=True)
    policy = middle(stubborn, "margin")
    with pytest.warns(UserWarning, match=r"computed whole, its exits save no time: .*cannot be traced"):
        runtime = EarlyExit(stubborn, policy, images(2))
    assert "cannot be traced" in runtime.reason
    inputs = images(30)
    left = runtime(inputs)
    answers = every_answer(stubborn, inputs)
    assert left.exits.tolist() == oracle(answers, policy)
    torch.testing.assert_close(left.logits, answers[left.exits, torch.arange(30)])


def test_it_stays_in_eval_mode(small: WithExits) -> None:
    runtime = EarlyExit(small, middle(small, "margin"), images(2)).train()
    assert not any(module.training for module in runtime.modules())


def test_a_policy_file_is_refused_for_another_network(small: WithExits, tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    policy = Policy("probability", (0.5, NEVER), (1.5, 1.0, 2.0))
    save_policy(path, policy, small, promised=0.005)
    assert load_policy(path, small) == policy
    assert '"promised": 0.005' in path.read_text()
    with pytest.raises(UserError, match="these thresholds were chosen for another network"):
        load_policy(path, network(seed=1))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"policy\.json: damaged"):
        load_policy(path, small)
    path.write_text('{"format": "x"}', encoding="utf-8")
    with pytest.raises(UserError, match="expected a file of the format potstill-exit-policy-1, got x"):
        load_policy(path, small)
    with pytest.raises(UserError, match="no such file"):
        load_policy(tmp_path / "other.json", small)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": None}, "these thresholds were chosen for another network"),
        ({"policy": None}, "damaged: policy: expected a kind, thresholds and temperatures, got None"),
        ({"policy": [0.5]}, "damaged: policy: expected a kind, thresholds and temperatures"),
        ({"policy": {"kind": "margin", "thresholds": ["high"], "temperatures": [1, 1]}}, "damaged: policy:"),
        ({"policy": {"kind": "luck", "thresholds": [1], "temperatures": [1, 1]}}, "damaged: .*got 'luck'"),
    ],
)
def test_a_policy_file_that_was_changed_by_hand_is_refused(
    small: WithExits, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "policy.json"
    save_policy(path, Policy("probability", (0.5, NEVER)), small)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))
    with pytest.raises(UserError, match=message):
        load_policy(path, small)
    for key in changes:
        path.write_text(json.dumps({name: value for name, value in content.items() if name != key}))
        with pytest.raises(UserError, match=f"damaged: {key} missing"):
            load_policy(path, small)


@pytest.mark.parametrize(
    ("kind", "thresholds", "temperatures", "message"),
    [
        ("certainty", (0.5,), (), "expected one of probability, entropy, margin, patience, got 'certainty'"),
        ("margin", (0.5,), (1.0,), "expected a temperature for each of 2 exits"),
        ("margin", (math.nan,), (), "expected thresholds that are numbers"),
        ("margin", (0.5,), (0.0, 1.0), "expected temperatures above 0"),
    ],
)
def test_bad_policies(
    kind: str, thresholds: tuple[float, ...], temperatures: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(kind, thresholds, temperatures)


def test_a_policy_of_another_number_of_exits(small: WithExits) -> None:
    with pytest.raises(UserError, match="expected thresholds for 2 exits, got 1"):
        EarlyExit(small, Policy("margin", (0.5,)), images(2))
