"""Early exits of a run: parts without a sample in common, a promise, figures, export, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from potstill.config import load
from potstill.data import ImageSet
from potstill.data.arrays import ArraySet
from potstill.deploy.early_exit import EarlyExit, load_policy
from potstill.deploy.guarantee import least_promise
from potstill.early_exits import parts_of
from potstill.early_exits.costs import typical
from potstill.early_exits.shifts import SHIFTS, Shifted
from potstill.errors import UserError
from potstill.run import load_student, run
from tests.test_schemes_run import write

HALF = "{kind: deep_supervision, exits: [first], calibrate_on: 0.5, max_loss: 0.2}"


def go(tiny: Any, out: Path, scheme: str, **options: Any) -> tuple[Any, list[str]]:
    lines: list[str] = []
    path = write(tiny, scheme, student=options.pop("student", "Staged"), epochs=3, learning_rate=0.2)
    result = run(path, data=tiny.root, out=out, echo=lines.append, **options)
    return result, lines


def test_a_run_writes_thresholds_and_what_they_do(tiny: Any, tmp_path: Path) -> None:
    result, lines = go(tiny, tmp_path / "run", HALF)
    found = result.data["early_exit"]
    assert found["calibration"]["samples"] == found["reporting"]["samples"] == 30
    assert found["calibration"]["part"] == "test"
    assert [row["name"] for row in found["exits"]] == ["first", "deepest"]
    assert sum(row["share"] for row in found["exits"]) == pytest.approx(1)
    assert found["exits"][0]["macs"] < found["exits"][1]["macs"]
    assert found["chosen"]["lost"] <= found["chosen"]["risk"]
    assert set(found["policies"]) == set(found["curves"]) == {"probability", "entropy", "margin", "patience"}
    assert set(found["chosen"]["timed"]["1"]) >= {"early", "whole", "folded", "whole_over_early"}
    assert found["shift"] == []
    kept = json.loads((tmp_path / "run" / "early_exit.json").read_text())
    assert kept["policy"] == found["policy"]
    assert kept["promised"] == found["promised"]
    said = "\n".join(lines)
    assert "early exits at first: the network can be cut there" in said
    assert "early exit by probability: " in said
