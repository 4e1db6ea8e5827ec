"""Two processes: they equal one, they stop together, they save together, they go on exactly."""

from __future__ import annotations

import importlib.util
import math
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from potstill import distributed
from potstill.errors import UserError
from potstill.train import TrainConfig, loop
from potstill.train.state import seed_everything


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

EQUAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate": 2, "batch_size": 4},
    "clipped": {"clip": 0.05},
    "averaged": {"ema": 0.5},
    "unevenly counted": {"accumulate": 2, "batch_size": 8},
}
PREPARE = {"unevenly counted": parts.unevenly_counted}


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**{"batch_size": 8, "learning_rate": 0.1, "warmup": 0.0, "steps": 5, **options})


def outcome(scheme: Any, trained: Any, log: Any) -> dict[str, Any]:
    weights = {name.replace(".module.", "."): tensor for name, tensor in scheme.state_dict().items()}
    rows = [row["parts"] for row in log.rows if "parts" in row]
    return {"weights": weights, "rows": rows, "last": trained.last_state, "interrupted": trained.interrupted}


def on_one(rank: int, number: int, act: Callable[[Any], None]) -> Callable[..., Any]:
    """A ``prepare`` that acts on batch ``number`` of process ``rank`` alone."""
    seen = []

    def prepare(*rows: Any) -> Any:
        batch = parts.in_float64(*rows)
        seen.append(batch)
        if distributed.rank() == rank and len(seen) == number:
            act(batch)
        return batch

    return prepare


def _one_of_two(rank: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    place, found = Path(folder), {}
    for name, options in EQUAL.items():
        prepare = PREPARE.get(name, parts.in_float64)
        found[name] = outcome(*parts.train_small(place / name, config(**options), prepare=prepare))
    seed_everything(1)
    found["noise"] = [torch.rand(()).item(), random.random(), float(np.random.rand())]
    # Only rank 1 is interrupted; dropout draws other numbers on each.
    steps = config(steps=9)
    found["whole"] = outcome(*parts.train_small(place / "whole", steps, dropout=0.5))
    cut = on_one(1, 4, lambda batch: signal.raise_signal(signal.SIGINT))
    found["cut"] = outcome(*parts.train_small(place / "cut", steps, dropout=0.5, prepare=cut))
    found["resumed"] = outcome(*parts.train_small(place / "cut", steps, dropout=0.5, resume=True))
    # Only rank 1's clock says that a checkpoint is due.
    loop.CHECKPOINT_SECONDS, loop.SAVING_SHARE = -1.0 if rank == 1 else 1e9, math.inf
    parts.train_small(place / "clock", config(steps=4))
    loop.CHECKPOINT_SECONDS = 1e9
    # Only rank 1 sees what is not a number.
    spoil = on_one(1, 3, lambda batch: batch.inputs["student"].fill_(float("nan")))
    try:
        parts.train_small(place / "spoilt", config(checkpoint_every=1), prepare=spoil)
    except UserError as error:
        found["error"] = str(error)
    torch.save(found, place / f"{rank}.pt")
    distributed.stop()


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> tuple[Path, list[dict[str, Any]]]:
    """Where two processes trained, and what each found."""
    place = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(pytestconfig.rootpath))  # a spawned process imports this file by its name
        multiprocessing.spawn(_one_of_two, (str(place / "store"), str(place)), nprocs=2)
    return place, [torch.load(place / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


Both = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_equal_one(tmp_path: Path, both: Both, name: str) -> None:
    prepare = PREPARE.get(name, parts.in_float64)
    one = outcome(*parts.train_small(tmp_path, config(**EQUAL[name]), prepare=prepare))
    assert len(one["rows"]) == 5
    for found in both[1]:
        other = found[name]
        for kind in ("weights", "last"):
            assert other[kind].keys() == one[kind].keys()
            for key, tensor in one[kind].items():
                torch.testing.assert_close(other[kind][key], tensor, rtol=0, atol=1e-10)
        for mine, theirs in zip(one["rows"], other["rows"], strict=True):
            assert theirs == pytest.approx(mine, abs=1e-10)
    assert len(list((both[0] / name).glob("step-*.pt"))) == len(list(tmp_path.glob("step-*.pt")))


def test_both_stop_where_one_was_interrupted_and_go_on_exactly(both: Both) -> None:
    _, found = both
    assert all(mine != other for mine, other in zip(found[0]["noise"], found[1]["noise"], strict=True))
    for mine in found:
        assert mine["cut"]["interrupted"]
        assert not mine["resumed"]["interrupted"]
        assert len(mine["cut"]["rows"]) < len(mine["whole"]["rows"]) == 9
        assert len(mine["cut"]["rows"]) + len(mine["resumed"]["rows"]) == 9
        for key, tensor in mine["whole"]["weights"].items():
            assert torch.equal(mine["resumed"]["weights"][key], tensor)


def test_both_save_where_the_clock_of_one_says_so(both: Both) -> None:
    steps = sorted(path.name.split("-")[1] for path in (both[0] / "clock").glob("step-*.pt"))
    assert steps == ["00000003", "00000004"]


def test_both_stop_and_say_the_same_where_one_has_a_loss_that_is_not_finite(both: Both) -> None:
    place, found = both
    for mine in found:
        assert "the loss is not finite at step 3 of 5: labels, kl, hint" in mine["error"]
        assert "step-00000002-" in mine["error"]
    assert max(path.name.split("-")[1] for path in (place / "spoilt").glob("step-*.pt")) == "00000002"
