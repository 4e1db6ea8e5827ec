"""Variations of a recipe: each a comparison of its own, joined seed by seed and sample by sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from potstill.cli import app
from potstill.compare import compare_methods, compare_variations
from potstill.compare.variations import read_variations
from potstill.errors import UserError

VARIED = """
plain: {}
flipped: {augment.flip: 1}
slow: {train: {epochs: 1, batch_size: 16, learning_rate: 0.001, precision: float32}}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "vary.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("seeds", [1, 2])
def test_each_variation_is_what_a_comparison_of_its_own_would_be(
    tiny: Any, tmp_path: Path, seeds: int
) -> None:
    lines: list[str] = []
    vary = write(tmp_path, VARIED)
    found = compare_variations(
        tiny.recipe, vary, data=tiny.root, seeds=seeds, out=tmp_path / "out", echo=lines.append
    )
    assert [(row["variation"], row["method"]) for row in found.rows] == [
        ("plain", "student"),
        ("flipped", "student"),
        ("slow", "student"),
    ]
    rows = tmp_path / "rows.yaml"
    rows.write_text(
        "student: {labels: {weight: 0.1}, kl: {weight: 0.9, temperature: 2},"
        " hint: {loss: feature_mse, weight: 1, layers: [conv]}}"
    )
    alone = compare_methods(
        tiny.recipe,
        rows=rows,
        seeds=seeds,
        data=tiny.root,
        out=tmp_path / "alone",
        overrides=["augment.flip=1"],
        echo=lambda line: None,
    )
    flipped = found.rows[1]
    assert flipped["student"] == pytest.approx(alone.data["methods"][0]["mean"], abs=1e-12)
    assert flipped["control"] == pytest.approx(alone.data["control"]["mean"], abs=1e-12)
    assert flipped["gain"]["interval"] == alone.data["methods"][0]["interval"]
    plain, slow = found.rows[0], found.rows[2]
    assert plain["control_change"] is plain["student_change"] is None
    for arm in ("control", "student"):
        change = slow[f"{arm}_change"]
        assert change["mean"] == pytest.approx(slow[arm] - plain[arm])
        assert change["interval"][0] <= change["mean"] <= change["interval"][1]
        assert (change["verdict"] is None) == (seeds == 1)
    assert slow["student_change"]["mean"] < 0
    assert json.loads((tmp_path / "out" / "variations.json").read_text())["rows"] == found.rows
    page = found.page.read_text()
    assert page.startswith("| variation | method | control | change | 95 % |")
    assert "\n| slow | student |" in page
    assert "flipped" in found.table()
    assert any(line.startswith("slow: teacher: ") for line in lines)
    again = compare_variations(
        tiny.recipe, vary, data=tiny.root, seeds=seeds, out=tmp_path / "out", echo=lines.append
    )
    assert again.rows == found.rows
    assert sum("0 to train" in line for line in lines[-6:]) == 3


def test_changes_are_paired_by_seed_and_sample(tmp_path: Path) -> None:
    from potstill.compare.standings import Comparison
    from potstill.compare.variations import _rows
    from potstill.metrics.verdict import compare

    rng = np.random.default_rng(0)
    scores = {
        name: (rng.random((2, 50)) < share).astype(float)
        for name, share in zip("abcd", (0.3, 0.5, 0.6, 0.9), strict=True)
    }
    first = Comparison(tmp_path, {}, scores={"control": scores["a"], "kl": scores["b"]})
    second = Comparison(tmp_path, {}, scores={"control": scores["c"], "kl": scores["d"], "late": scores["b"]})
    rows = _rows({"one": first, "two": second})
    assert [(row["variation"], row["method"]) for row in rows] == [
        ("one", "kl"),
        ("two", "kl"),
        ("two", "late"),
    ]
    expected = compare(scores["d"], scores["b"])
    assert rows[1]["student_change"] == {
        "mean": expected.gain,
        "interval": list(expected.interval),
        "verdict": expected.verdict,
    }
    assert rows[2]["student_change"] is None
    assert rows[2]["control_change"] == rows[1]["control_change"]


def test_the_command_varies_too_and_names_what_failed(tiny: Any, tmp_path: Path) -> None:
    rows = tmp_path / "rows.yaml"
    rows.write_text("nowhere: {hint: {loss: feature_mse, layers: [absent]}}")
    words = ["compare", str(tiny.recipe), "--vary", str(write(tmp_path, VARIED)), "--seeds", "1"]
    words += ["--data", str(tiny.root), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--methods", "kl", "--rows", str(rows)])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("failed: plain/nowhere, flipped/nowhere, slow/nowhere;")
    assert f"report: {tmp_path / 'out' / 'variations.md'}" in done.stdout
    assert (tmp_path / "out" / "flipped" / "methods" / "kl" / "report.html").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {}", "expected at least two variations, got 1"),
        ("a: {}\nb/c: {}", "b/c: expected a name of letters"),
        ("a: {}\nb: [1]", r"b: expected settings such as .*, got \[1\]"),
        ("a: {}\nb: {seed: 3}", "b: seed: must be the same for all"),
        ("a: {}\nb: {distill.kl.temperature: 3}", "b: distill.kl.temperature: must be the same for all"),
        ("a: {}\nb: {data.path: other}", "b: data.path: must be the same for all: scores are paired"),
        ("a: {}\nb: {augment.flop: 1}", "b: augment.flop: unknown key; did you mean 'flip'"),
        ("a: {}\na: {}", "key occurs twice"),
    ],
)
def test_mistakes_in_a_file_of_variations(tiny: Any, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_variations(write(tmp_path, text), tiny.recipe)
    with pytest.raises(UserError, match="--vary: expected a file of named settings, got"):
        read_variations(tmp_path / "absent.yaml", tiny.recipe)
