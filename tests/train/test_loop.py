"""The loop: one process or two, one batch or eight, schedules, averages, early stop."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from potstill import distributed
from potstill.errors import UserError
from potstill.train import TrainConfig
from potstill.train.optimise import learning_rate


def _load_parts() -> Any:
    """``parts.py`` beside this file, under a name that spawned processes can import too."""
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
    return {name.replace(".module.", "."): tensor for name, tensor in scheme.state_dict().items()}


def _one_of_two(rank: int, store: str, folder: str, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    scheme, trained, log = parts.train_small(Path(folder), config(**options))
    rows = [row["parts"] for row in log.rows if "parts" in row]
    torch.save({"weights": _weights(scheme), "rows": rows, "last": trained.last_state}, f"{folder}/{rank}.pt")
    distributed.stop()


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "batch_size": 4}, {"clip": 0.05}])
def test_two_processes_equal_one(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "two").mkdir()
    arguments = (str(tmp_path / "store"), str(tmp_path / "two"), options)
    multiprocessing.spawn(_one_of_two, arguments, nprocs=2)
    scheme, trained, log = parts.train_small(tmp_path / "one", config(**options))
    rows = [row["parts"] for row in log.rows if "parts" in row]
    assert len(rows) == 5
    for rank in (0, 1):
        other = torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True)
        for name, tensor in _weights(scheme).items():
            torch.testing.assert_close(other["weights"][name], tensor, rtol=0, atol=1e-10)
        for name, tensor in trained.last_state.items():
            torch.testing.assert_close(other["last"][name], tensor, rtol=0, atol=1e-10)
        for mine, theirs in zip(rows, other["rows"], strict=True):
            assert theirs == pytest.approx(mine, abs=1e-10)
    assert len(list((tmp_path / "two").glob("step-*.pt"))) == len(list((tmp_path / "one").glob("step-*.pt")))


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


def test_schemes_compile(tmp_path: Path) -> None:
    eager, _, _ = parts.train_small(tmp_path / "eager", config(steps=2))
    try:
        compiled, _, _ = parts.train_small(tmp_path / "compiled", config(steps=2, compile=True))
    finally:
        torch._dynamo.reset()
    for name, tensor in eager.student.state_dict().items():
        torch.testing.assert_close(compiled.student.state_dict()[name], tensor, rtol=1e-6, atol=1e-8)
