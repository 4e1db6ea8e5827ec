"""The loop: one batch or eight, schedules, clipping, averages, early stop, interruptions."""

from __future__ import annotations

import importlib.util
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from potstill.batch import Batch
from potstill.errors import UserError
from potstill.train import TrainConfig, loop
from potstill.train.optimise import clip_gradients, learning_rate
from potstill.train.state import Checkpoints


def _load_parts() -> Any:
    """``parts.py`` beside this file."""
    spec = importlib.util.spec_from_file_location("train_parts", Path(__file__).parent / "parts.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_parts"] = module
    spec.loader.exec_module(module)
    return module


parts = _load_parts()


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**{"batch_size": 8, "learning_rate": 0.1, "warmup": 0.0, "steps": 5, **options})


def _weights(scheme: Any) -> dict[str, torch.Tensor]:
    return dict(scheme.state_dict())


def test_accumulating_eight_batches_equals_one_big_batch(tmp_path: Path) -> None:
    one, _, _ = parts.train_small(tmp_path / "one", config(batch_size=16))
    many, _, _ = parts.train_small(tmp_path / "many", config(batch_size=2, accumulate=8))
    for name, tensor in _weights(one).items():
        torch.testing.assert_close(_weights(many)[name], tensor, rtol=0, atol=1e-10)


def test_the_loss_falls(tmp_path: Path) -> None:
    _, _, log = parts.train_small(tmp_path, config(steps=60))
    rows = [row["parts"] for row in log.rows if "parts" in row]
    assert rows[-1]["kl"] < 0.7 * rows[0]["kl"]
    assert rows[-1]["hint"] < rows[0]["hint"]


def test_parts_are_logged_by_name_and_unweighted(tmp_path: Path) -> None:
    terms = {"kl": {"weight": 1e-6}, "labels": {"weight": 1.0}}
    _, _, log = parts.train_small(tmp_path, config(steps=1), terms=terms)
    assert set(log.rows[0]["parts"]) == {"kl", "labels"}
    assert log.rows[0]["parts"]["kl"] > 1e-3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant", "warmup": 0.5}, [0.2, 0.4, 0.6, 0.8, 1.0, 1, 1, 1, 1, 1]),
        (
            {"schedule": "step", "warmup": 0.0, "milestones": (0.5, 0.8)},
            [1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01],
        ),
    ],
)
def test_schedules(options: dict[str, Any], expected: list[float]) -> None:
    settings = TrainConfig(learning_rate=1.0, **options)
    assert [learning_rate(settings, step, 10) for step in range(10)] == pytest.approx(expected)


def test_cosine_falls_from_the_peak_to_nearly_nothing() -> None:
    settings = TrainConfig(learning_rate=2.0, warmup=0.2)
    rates = [learning_rate(settings, step, 50) for step in range(50)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * step / 40) for step in range(40)])


def test_clipping_scales_all_parts_together() -> None:
    one, other = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    for part, gradient in ((one, 3.0), (other, 4.0)):
        part.weight.grad = torch.tensor([[gradient]])
    clip_gradients([one, other], None)
    assert one.weight.grad.item() == 3.0
    clip_gradients([one, other], 10.0)
    assert other.weight.grad.item() == 4.0
    clip_gradients([one, other], 1.0)
    assert [one.weight.grad.item(), other.weight.grad.item()] == pytest.approx([0.6, 0.8], rel=1e-5)


def test_the_average_follows_its_formula(tmp_path: Path) -> None:
    """The average after each step, from the weights after each step, typed anew."""
    states = []
    for steps in (1, 2, 3):
        scheme, trained, _ = parts.train_small(
            tmp_path / str(steps), config(steps=steps, ema=0.7, schedule="constant")
        )
        states.append((scheme.student.state_dict(), trained.last_state))
    for name in states[0][0]:
        average = states[0][0][name]
        for plain, kept in states[1:]:
            average = 0.7 * average + 0.3 * plain[name]
            torch.testing.assert_close(kept[name], average, rtol=0, atol=1e-12)


def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    scheme, trained, _ = parts.train_small(tmp_path, config(ema=0.5))
    plain = scheme.student.state_dict()
    assert all(name in plain for name in trained.last_state)
    assert any(not torch.equal(plain[name], tensor) for name, tensor in trained.last_state.items())
    fast, still, _ = parts.train_small(tmp_path / "fast", config(ema=1e-9))
    for name, tensor in still.last_state.items():
        torch.testing.assert_close(fast.student.state_dict()[name], tensor, rtol=1e-6, atol=1e-7)


def test_the_best_epoch_is_kept_apart_and_patience_stops(tmp_path: Path) -> None:
    accuracies = [0.1, 0.9, 0.3, 0.4, 0.5, 0.6]
    _, trained, _ = parts.train_small(tmp_path, config(steps=60, patience=2), accuracies=accuracies)
    assert trained.best_epoch == 2
    assert len(trained.history) == 4
    assert trained.steps == 4 * 6
    assert any(
        not torch.equal(trained.best_state[name], tensor) for name, tensor in trained.last_state.items()
    )


def test_adamw_and_fractions_of_an_epoch(tmp_path: Path) -> None:
    options = {"optimizer": "adamw", "steps": None, "epochs": 1.5, "learning_rate": 1e-3}
    _, trained, _ = parts.train_small(tmp_path, config(**options))
    assert trained.steps == 9
    assert [row["epoch"] for row in trained.history] == [1, 2]


def test_infinite_loss_names_step_part_and_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"not finite at step \d+ of 60: .*hint.*last good checkpoint: .*step-"
    ):
        parts.train_small(tmp_path, config(steps=60, learning_rate=1e6, checkpoint_every=1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["step", "evaluation"])
def test_an_interruption_at_the_very_end_is_not_lost(
    tmp_path: Path, number: signal.Signals, moment: str
) -> None:
    """All is trained, but what the caller would do next must not begin."""
    seen = []

    def prepare(*rows: Any) -> Any:
        seen.append(rows)
        if moment == "step" and len(seen) == 3:
            signal.raise_signal(number)
        return parts.in_float64(*rows)

    def accuracies() -> Iterator[float]:
        if moment == "evaluation":
            signal.raise_signal(number)
        yield 0.5

    before = signal.getsignal(number)
    _, trained, _ = parts.train_small(tmp_path, config(steps=3), prepare=prepare, accuracies=accuracies())
    assert signal.getsignal(number) is before
    assert trained.interrupted
    assert trained.steps == 3
    _, again, _ = parts.train_small(tmp_path, config(steps=3), resume=True)
    assert not again.interrupted
    for name, tensor in trained.last_state.items():
        assert torch.equal(again.last_state[name], tensor)


def test_a_new_training_refuses_the_checkpoints_of_another(tmp_path: Path) -> None:
    parts.train_small(tmp_path, config(steps=2))
    with pytest.raises(UserError, match="holds checkpoints of another training"):
        parts.train_small(tmp_path, config(steps=2))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The loss of the last step is fine, only the update is not."""
    with pytest.raises(UserError, match=r"student: .* is not finite after step 1; there is no checkpoint"):
        parts.train_small(tmp_path, config(steps=1, learning_rate=1e308, weight_decay=1e300))
    assert not list(tmp_path.glob("step-*"))


def test_schemes_compile(tmp_path: Path) -> None:
    eager, _, _ = parts.train_small(tmp_path / "eager", config(steps=2))
    try:
        compiled, _, _ = parts.train_small(tmp_path / "compiled", config(steps=2, compile=True))
    finally:
        torch._dynamo.reset()
    for name, tensor in eager.student.state_dict().items():
        torch.testing.assert_close(compiled.student.state_dict()[name], tensor, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "message",
    ["CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory: 9 B"],
)
def test_memory_that_runs_out_names_the_settings_to_lower(tmp_path: Path, message: str) -> None:
    def prepare(*_: Any) -> Any:
        raise RuntimeError(message)

    with pytest.raises(UserError, match=r"train\.batch_size: out of memory in a step: lower it"):
        parts.train_small(tmp_path, config(steps=1), prepare=prepare)


def test_other_errors_of_a_step_stay_as_they_are(tmp_path: Path) -> None:
    def prepare(*_: Any) -> Any:
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        parts.train_small(tmp_path, config(steps=1), prepare=prepare)


@pytest.mark.parametrize(("took", "steps"), [(0, [3, 6]), (1, [3, 6]), (2, [3])])
def test_what_is_slow_to_save_is_saved_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: int, steps: list[int]
) -> None:
    """By a clock that a step moves by 1, and a save by ``took``: due after 2, or 2.5 times that."""
    now = [0.0]

    class Watch:
        def __init__(self) -> None:
            self.begun = now[0]

        @property
        def seconds(self) -> float:
            return now[0] - self.begun

    def prepare(*rows: Any) -> Batch:
        now[0] += 1
        return parts.in_float64(*rows)

    saved: list[int] = []

    def save(self: Checkpoints, step: int, payload: dict[str, Any]) -> None:
        now[0] += took
        saved.append(step)

    monkeypatch.setattr(loop, "Stopwatch", Watch)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 2.0)
    monkeypatch.setattr(loop, "SAVING_SHARE", 0.4)
    monkeypatch.setattr(Checkpoints, "save", save)
    parts.train_small(tmp_path, config(steps=9, batch_size=2), prepare=prepare)
    assert saved[:-1] == steps  # the last is the end's
