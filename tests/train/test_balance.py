"""Gradient norms: right, without a trace in the training; weights that follow from them."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from potstill import distributed
from potstill.errors import UserError
from potstill.matching.objective import Objective
from potstill.train import TrainConfig
from potstill.train.balance import STEPS_A_PART, Balance


def _load_parts() -> Any:
    """``parts.py`` beside this file; spawned processes load it anew."""
    spec = importlib.util.spec_from_file_location("train_parts", Path(__file__).parent / "parts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_parts"] = module
    spec.loader.exec_module(module)
    return module


parts = _load_parts()

AUTO: dict[str, Any] = {
    "labels": {"weight": 0.5},
    "kl": {"weight": "auto", "temperature": 2.0, "share": 2.0},
    "hint": {"loss": "feature_mse", "weight": "auto", "layers": ["0"]},
}
SETS: dict[str, Any] = {**AUTO, "rkd_distance": {"weight": "auto", "layers": ["0"]}}


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**{"batch_size": 8, "learning_rate": 0.1, "warmup": 0.0, "steps": 5, **options})


def norms_of(log: Any) -> list[dict[str, float]]:
    return [row["gradient_norms"] for row in log.rows if "gradient_norms" in row]


def weights_of(log: Any) -> dict[str, float]:
    return {name: weight for row in log.rows for name, weight in row.get("weights", {}).items()}


def by_hand(scheme: Any, rows: int) -> dict[str, float]:
    """Norms of the mean of each part over the first ``rows`` samples of epoch 0, by ``backward``."""
    from potstill.data.loader import Loader

    images, labels, index = next(iter(Loader(parts.data(), batch_size=rows, seed=0).epoch(0)))
    batch = parts.in_float64(images, labels, index, 0)
    found = {}
    for name in scheme.objective.active(0.0):
        scheme.zero_grad()
        scheme(batch).parts[name].mean.backward()
        squares = [
            parameter.grad.square().sum()
            for parameter in scheme.student.parameters()
            if parameter.grad is not None
        ]
        found[name] = math.sqrt(float(sum(squares)))
    return found


@pytest.mark.parametrize("options", [{"batch_size": 8}, {"batch_size": 2, "accumulate": 4}])
def test_norms_are_those_of_the_student_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    """A learning rate of nearly nothing leaves the weights; adapters have gradients that do not count."""
    still = config(steps=1, gradient_norms=1, learning_rate=1e-300, weight_decay=0.0, **options)
    scheme, _, log = parts.train_small(tmp_path, still)
    expected = by_hand(scheme, 8)
    assert sum(parameter.numel() for parameter in scheme.parts["student"].adapters.parameters()) > 0
    assert set(expected) == {"labels", "kl", "hint"}
    assert log.rows[0]["gradient_norms"] == pytest.approx(expected, rel=1e-10)
    weights = {"labels": 0.5, "kl": 0.9, "hint": 1.0}
    for name, weight in weights.items():
        assert log.rows[0]["weighted_gradient_norms"][name] == pytest.approx(weight * expected[name])
        assert log.rows[0]["weighted"][name] == pytest.approx(weight * log.rows[0]["parts"][name])


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "batch_size": 4, "clip": 0.1, "ema": 0.5}])
def test_measuring_leaves_no_trace(tmp_path: Path, options: dict[str, Any]) -> None:
    trained = {}
    for every in (0, 1):
        scheme, result, log = parts.train_small(
            tmp_path / str(every), config(gradient_norms=every, steps=7, **options), dropout=0.5
        )
        assert len(norms_of(log)) == 7 * every
        trained[every] = {**scheme.state_dict(), **result.last_state, "drawn": torch.rand(3)}
        assert all(parameter.grad is None for parameter in scheme.parameters())
    for name, tensor in trained[0].items():
        assert torch.equal(trained[1][name], tensor), name


def test_measuring_leaves_no_trace_in_a_compiled_student(tmp_path: Path) -> None:
    trained = []
    try:
        for every in (0, 2):
            scheme, _, _ = parts.train_small(
                tmp_path / str(every), config(gradient_norms=every, compile=True, steps=4)
            )
            trained.append(scheme.state_dict())
    finally:
        torch._dynamo.reset()
    for name, tensor in trained[0].items():
        assert torch.equal(trained[1][name], tensor), name


def test_it_is_measured_as_often_as_it_costs_two_per_cent(tmp_path: Path) -> None:
    scheme, _, _ = parts.train_small(tmp_path, config())
    balance = Balance(scheme, None, 1000)
    counts = dict.fromkeys(("labels", "kl", "hint"), 8.0)
    measured = [step + 1 for step in range(1000) if balance.measuring(step, counts)]
    assert measured == list(range(3 * STEPS_A_PART, 1001, 3 * STEPS_A_PART))
    assert not any(balance.measuring(step, {"labels": 8.0}) for step in range(1000))


def test_auto_weights_reach_their_shares(tmp_path: Path) -> None:
    """One decisive step at rate nearly 0: from then on the gradients stand as they were asked to."""
    still = {"learning_rate": 1e-300, "weight_decay": 0.0, "batch_size": 48, "gradient_norms": 1}
    scheme, trained, log = parts.train_small(tmp_path, config(steps=3, **still), terms=AUTO)
    assert set(trained.weights) == {"kl", "hint"}
    assert trained.weights == weights_of(log) == scheme.objective.settled
    before, after = (
        next(row["weighted_gradient_norms"] for row in log.rows if row["step"] == step and "parts" in row)
        for step in (1, 2)
    )
    assert before["kl"] == pytest.approx(0.9 * before["labels"] * norm_ratio(log, "kl") / 0.5)
    clamped = trained.weights["hint"] in (10.0, 1000.0)
    assert after["kl"] == pytest.approx(2.0 * after["labels"])
    assert clamped or after["hint"] == pytest.approx(0.5 * after["labels"])
    assert sum("chosen for" in line for line in log.lines) == 2


def norm_ratio(log: Any, name: str) -> float:
    first = norms_of(log)[0]
    return first[name] / first["labels"]


@pytest.mark.parametrize(("share", "expected"), [(1e9, 9.0), (1e-9, 0.09)])
def test_weights_stay_within_ten_times_the_default(tmp_path: Path, share: float, expected: float) -> None:
    terms = {"labels": {"weight": 1.0}, "kl": {"weight": "auto", "share": share}}
    _, trained, log = parts.train_small(tmp_path, config(steps=2), terms=terms)
    assert trained.weights["kl"] == pytest.approx(expected)
    assert any("further than 10 times off" in line for line in log.lines)


def test_a_term_without_a_gradient_keeps_its_default(tmp_path: Path) -> None:
    terms = {"labels": {"weight": 1.0}, "kl": {"weight": "auto", "until": 0.25, "from": 0.1}}
    scheme, _, _ = parts.train_small(tmp_path, config(), terms=terms)
    said: list[str] = []
    balance = Balance(scheme, None, 10)
    assert list(balance.take(1, {"labels": 1.0, "kl": 0.0}, said.append)) == [{"weights": {"kl": 0.9}}]
    assert said == ["kl: weight 0.9, its default, as it has no gradient at the student (0)"]


def test_the_second_half_of_the_first_two_per_cent_decides(tmp_path: Path) -> None:
    terms = {"labels": {"weight": 1.0}, "kl": {"weight": "auto"}, "late": {"loss": "kl", "weight": "auto"}}
    terms["late"]["from"] = 0.5
    scheme, _, _ = parts.train_small(tmp_path, config(), terms=terms)
    balance = Balance(scheme, 0, 500)
    chosen: dict[int, Any] = {}
    measured = []
    for step in range(500):
        if balance.measuring(step, {"labels": 8.0, "kl": 8.0, "late": 8.0}):
            measured.append(step)
            norms = {"labels": 2.0, "kl": float(step), "late": 3.0}
            for row in balance.take(step, norms, lambda line: None):
                chosen[step] = row["weights"]
    assert measured == [5, 6, 7, 8, 9, *range(255, 260)]
    assert chosen == {9: {"kl": pytest.approx(9 * 2.0 / 7.0)}, 259: {"late": pytest.approx(9 * 2.0 / 3.0)}}


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_resumed_weights_are_bit_for_bit_the_same(tmp_path: Path, cut: int) -> None:
    """Cut before, at and after the choice: 2 % of 150 steps are 3, of which the last two decide."""
    whole, trained, _ = parts.train_small(
        tmp_path / "whole", config(steps=150, learning_rate=1e-3), terms=AUTO, dropout=0.5
    )
    seen = []

    def prepare(*rows: Any) -> Any:
        import signal

        seen.append(rows)
        if len(seen) == cut:
            signal.raise_signal(signal.SIGINT)
        return parts.in_float64(*rows)

    parts.train_small(
        tmp_path / "cut", config(steps=150, learning_rate=1e-3), terms=AUTO, dropout=0.5, prepare=prepare
    )
    scheme, again, _ = parts.train_small(
        tmp_path / "cut", config(steps=150, learning_rate=1e-3), terms=AUTO, dropout=0.5, resume=True
    )
    assert len(seen) < 10
    assert again.weights == trained.weights
    assert scheme.objective.settled == whole.objective.settled
    for name, tensor in whole.state_dict().items():
        assert torch.equal(scheme.state_dict()[name], tensor)


def found_in(folder: Path) -> dict[str, Any]:
    options = config(steps=60, gradient_norms=20, accumulate=2, learning_rate=1e-3)
    scheme, trained, log = parts.train_small(folder, options, terms=SETS)
    weights = {name.replace(".module.", "."): tensor for name, tensor in scheme.state_dict().items()}
    return {"state": weights, "chosen": trained.weights, "norms": norms_of(log)}


def _one_of_two(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(found_in(Path(folder) / "two"), Path(folder) / f"{rank}.pt")
    distributed.stop()


def test_two_processes_measure_and_choose_as_one(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(pytestconfig.rootpath))  # a spawned process imports this file by its name
    multiprocessing.spawn(_one_of_two, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    one = found_in(tmp_path / "one")
    assert first["chosen"] == second["chosen"]
    assert len(one["norms"]) == 3 + 1
    for found in (first, second):
        assert found["chosen"] == pytest.approx(one["chosen"], rel=1e-5)
        for mine, theirs in zip(found["norms"], one["norms"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)
        for name, tensor in one["state"].items():
            torch.testing.assert_close(found["state"][name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"labels": {"weight": 0}, "kl": {"weight": "auto"}}, "distill.kl.weight: auto measures against"),
        (
            {"labels": {"weight": 1, "from": 0.5}, "kl": {"weight": "auto"}},
            "distill.kl.weight: auto measures against the labels' gradient, and distill.labels has no weight "
            "at 0 of the run",
        ),
        ({"kl": {"weight": "audo"}}, "distill.kl.weight: expected a number or one of auto, got 'audo'"),
        ({"kl": {"share": 0.5}}, "distill.kl.share: has a meaning at weight: auto alone"),
        ({"kl": {"weight": 1, "share": 0.5}}, "distill.kl.share: has a meaning at weight: auto alone"),
        ({"kl": {"weight": "auto", "share": 0}}, "distill.kl.share: must be > 0, got 0"),
        ({"labels": {"weight": "auto"}}, "distill.labels.weight: expected a number, got 'auto'"),
        ({"labels": {"share": 1}}, "distill.labels.share: unknown key"),
    ],
)
def test_what_cannot_be_weighed_is_refused_at_its_key(terms: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Objective(terms, parts.supervised)
    assert str(caught.value).startswith(message)


def test_without_labels_nothing_can_be_weighed() -> None:
    with pytest.raises(UserError, match=r"distill\.kl\.weight: auto measures against"):
        Objective({"kl": {"weight": "auto"}})


def test_the_plan_says_what_is_measured_and_then_what_was_chosen() -> None:
    objective = Objective({"kl": {"weight": "auto"}, "feature_mse": {"weight": "auto"}}, parts.supervised)
    lines = objective.describe()
    assert lines[1].startswith(
        "kl: weight auto (share 9 of the labels' gradient, measured after 2 % of the run), temperature 4"
    )
    assert lines[2].startswith(
        "feature_mse: weight auto (share 0.5 of the labels' gradient, measured after 2 %"
    )
    other = objective.copied()
    other.settle({"kl": 2.5})
    assert other.describe()[1].startswith("kl: weight 2.5 (auto, share 9 of the labels' gradient), temp")
    assert objective.describe() == lines
    assert other.active(0.0) == {"labels": 0.1, "kl": 2.5, "feature_mse": 100.0}
