"""Who watches: the metrics file survives anything, lines and bar say what is going on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from potstill.errors import UserError
from potstill.randomness import random_state, restore_random_state
from potstill.train import precision
from potstill.train.observe import Bar, Lines, Many, MetricsFile, TensorBoard, make_observer
from potstill.train.precision import choose


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_after_the_checkpoint_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    other = MetricsFile(path, "control", 0)
    mine = MetricsFile(path, "student", 0)
    for step in (1, 2, 3):
        other.log({"step": step, "parts": {"labels": 1.0}})
        mine.log({"step": step, "parts": {"labels": 1.0}})
    with path.open("a") as stream:
        stream.write('{"arm": "student", "se')
    mine.start(2, 10)
    assert [(row["arm"], row["step"]) for row in rows(path)] == [
        ("control", 1),
        ("student", 1),
        ("control", 2),
        ("student", 2),
        ("control", 3),
    ]
    mine.log({"step": 3})
    assert rows(path)[-1] == {"arm": "student", "seed": 0, "step": 3}


def test_metrics_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the metrics"):
        MetricsFile(tmp_path / "nowhere" / "metrics.jsonl", "student", 0).log({"step": 1})


def test_lines_come_about_ten_times(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("student-0")
    lines.start(0, 100)
    for step in range(1, 101):
        lines.log({"step": step, "parts": {"kl": 0.5}})
    said = capsys.readouterr().err.splitlines()
    assert 9 <= len(said) <= 11
    assert said[-1] == "student-0: step 100/100, kl 0.5"


def test_the_bar_shows_parts(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("student-0")
    bar.start(0, 3)
    bar.advance(2)
    bar.log({"step": 2, "samples_per_second": 100.0, "parts": {"kl": 0.25, "[/b]": 2.0}})
    bar.log({"step": 2, "epoch": 1, "weights": {"kl": 2.0}})
    bar.say("a note [/b]")
    bar.advance(3)
    bar.finish()
    said = capsys.readouterr().out
    for part in ("student-0", "3/3", "a note [/b]", "kl 0.25"):
        assert part in said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoard(tmp_path / "board")
    board.start(0, 2)
    board.log({"step": 1, "epoch": 1, "parts": {"kl": 0.5}, "gradient_norms": {"kl": 2.0}})
    board.finish()
    written = EventAccumulator(str(tmp_path / "board")).Reload()
    assert set(written.Tags()["scalars"]) == {"epoch", "kl", "gradient_norms/kl"}
    assert written.Scalars("gradient_norms/kl")[0].value == 2.0
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'potstill\[tensorboard\]'"):
        TensorBoard(tmp_path / "other")


def test_only_the_main_rank_watches(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    silent = make_observer(path, arm="student", seed=0, title="t", tensorboard=None, main=False)
    assert isinstance(silent, Many)
    assert silent.observers == ()
    loud = make_observer(path, arm="student", seed=0, title="t", tensorboard=None, main=True)
    assert isinstance(loud, Many)
    assert any(isinstance(one, MetricsFile) for one in loud.observers)


@pytest.mark.parametrize(
    ("able", "speed", "expected"),
    [(True, 1.9, "bf16"), (True, 0.53, "float32"), (False, 1.9, "float32")],
    ids=["bf16 is quicker", "there, but slower", "no instructions"],
)
def test_auto_precision_asks_the_processor(
    monkeypatch: pytest.MonkeyPatch, able: bool, speed: float, expected: str
) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: able, raising=False)
    monkeypatch.setattr(precision, "_speed_of_bf16", lambda: speed)
    chosen = choose("auto", torch.device("cpu"), nn.Conv2d(1, 1, 1))
    assert chosen.name == expected
    assert chosen.channels_last
    with chosen.autocast(torch.device("cpu")):
        assert torch.is_autocast_enabled("cpu") is (expected == "bf16")
    assert not choose("auto", torch.device("cpu"), nn.Linear(1, 1)).channels_last
    assert choose("float32", torch.device("cpu"), nn.Linear(1, 1)).name == "float32"


def test_the_speed_of_bf16_is_that_of_products_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = [0.0], set()

    def product(left: torch.Tensor, right: torch.Tensor) -> None:
        first = left.dtype not in seen
        seen.add(left.dtype)
        now[0] += (100 if first else 1) * (2 if left.dtype is torch.bfloat16 else 6)

    monkeypatch.setattr("potstill.train.precision.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(torch, "mm", product)
    assert precision._speed_of_bf16.__wrapped__() == 3
    assert seen == {torch.float32, torch.bfloat16}


def test_random_states_come_back() -> None:
    import random

    import numpy as np

    before = random_state()
    first = (torch.rand(3).tolist(), random.random(), np.random.rand())
    restore_random_state(before)
    assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == first
