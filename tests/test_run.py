"""One recipe from start to finish, on a project that trains in a second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from potstill.config import load
from potstill.errors import UserError
from potstill.run import load_student, run

Lines = list[str]


def go(tiny: Any, out: Path, *overrides: str, **options: Any) -> tuple[Any, Lines]:
    lines: Lines = []
    result = run(tiny.recipe, data=tiny.root, out=out, overrides=overrides, echo=lines.append, **options)
    return result, lines


def test_a_run_leaves_everything_a_reader_needs(tiny: Any, tmp_path: Path) -> None:
    result, lines = go(tiny, tmp_path / "run", "seeds=2")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "recipe.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "student.safetensors",
        "result.json",
        "report.html",
    } <= names
    data = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {"task", "metric", "higher_is_better", "seeds", "models", "gain", "verdict"} <= set(data)
    assert {"interval", "seconds", "samples_per_second", "selected"} <= set(data)
    assert set(data["models"]) == {"teacher", "control", "student"}
    for arm in ("control", "student"):
        model = data["models"][arm]
        assert len(model["per_seed"]) == 2
        assert {"accuracy", "parameters", "macs", "bytes", "latency_ms", "last", "best", "ece"} <= set(model)
        assert {"agreement", "kl_to_teacher"} <= set(model)
    assert data["models"]["student"]["parameters"] < data["models"]["teacher"]["parameters"]
    assert data["verdict"] in ("better", "same", "worse")
    assert data["gain"] == pytest.approx(
        data["models"]["student"]["accuracy"] - data["models"]["control"]["accuracy"]
    )
    assert data["interval"][0] <= data["gain"] <= data["interval"][1]
    assert result.student is not None
    assert not result.student.training
    assert any("teacher:" in line for line in lines)
    assert "gain of distillation" in result.table()


def test_a_chosen_weight_stands_in_the_result_and_the_report(tiny: Any, tmp_path: Path) -> None:
    auto = (
        "distill.kl={weight: auto, temperature: 2}",
        "train.gradient_norms=3",
        "train.learning_rate=0.001",
    )
    go(tiny, tmp_path / "run", "seeds=2", *auto)
    data = json.loads((tmp_path / "run" / "result.json").read_text())
    chosen = data["models"]["student"]["weights"]["kl"]
    assert len(chosen) == 2
    assert all(0.09 <= weight <= 9.0 for weight in chosen)
    assert "weights" not in data["models"]["control"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["weights"]["kl"] for row in rows if "weights" in row] == chosen
    assert any(set(row.get("gradient_norms", ())) == {"labels", "kl", "hint"} for row in rows)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "weight auto, share 9 of the labels&#x27; gradient, by seed: " in page
    assert "kl during training, length of weighted gradient" in page
    assert load(tmp_path / "run" / "recipe.yaml").distill["kl"]["weight"] == "auto"


def test_a_resolved_recipe_runs_again_to_the_same_weights(tiny: Any, tmp_path: Path) -> None:
    go(tiny, tmp_path / "one", "train.epochs=1")
    again = run(
        tmp_path / "one" / "recipe.yaml", data=tiny.root, out=tmp_path / "two", echo=lambda line: None
    )
    assert again.verdict is not None
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert load(tmp_path / "two" / "recipe.yaml") == load(tmp_path / "one" / "recipe.yaml")


def test_without_a_control_there_is_no_verdict(tiny: Any, tmp_path: Path) -> None:
    result, _ = go(tiny, tmp_path / "run", "train.epochs=1", control=False)
    assert result.verdict is None
    assert "control" not in result.data["models"]
    assert "no control" in result.data["reason"]
    assert (tmp_path / "run" / "report.html").is_file()


def test_one_seed_says_that_the_spread_was_not_measured(tiny: Any, tmp_path: Path) -> None:
    result, lines = go(tiny, tmp_path / "run", "train.epochs=1")
    assert "spread between runs was not measured" in result.data["reason"]
    assert any("spread between runs was not measured" in line for line in lines)


def test_dry_shows_the_plan_and_writes_nothing(tiny: Any, tmp_path: Path) -> None:
    _, lines = go(tiny, tmp_path / "run", dry=True)
    text = "\n".join(lines)
    for expected in (
        "teacher: nets.py:big",
        "parameters",
        "MACs",
        "conv",
        "1x1 conv 2->8",
        "steps",
        "estimate",
    ):
        assert expected in text
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_returned_on_resume(tiny: Any, tmp_path: Path) -> None:
    first, _ = go(tiny, tmp_path / "run", "train.epochs=1")
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    second, lines = go(tiny, tmp_path / "run", "train.epochs=1", resume=True)
    assert second.data == first.data
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before
    assert "finished already" in lines[0]


def test_finished_cells_are_not_trained_again(tiny: Any, tmp_path: Path) -> None:
    go(tiny, tmp_path / "run", "train.epochs=1")
    shutil.copyfile(tmp_path / "run" / "student.safetensors", tmp_path / "before.safetensors")
    (tmp_path / "run" / "result.json").unlink()
    weights = tmp_path / "run" / "checkpoints" / "student-0" / "last.safetensors"
    before = weights.stat().st_mtime_ns
    go(tiny, tmp_path / "run", "train.epochs=1", resume=True)
    assert weights.stat().st_mtime_ns == before


def test_load_student_gives_what_export_needs(tiny: Any, tmp_path: Path) -> None:
    go(tiny, tmp_path / "run", "train.epochs=1")
    loaded = load_student(tmp_path / "run")
    assert loaded.class_names == ("left", "middle", "right")
    assert loaded.shape == (1, 6, 6)
    images = loaded.samples(4)
    assert images.shape == (4, 1, 6, 6)
    assert loaded.student(loaded.preprocessing.normalise(images)).shape == (4, 3)


@pytest.mark.parametrize("kind", ["other recipe", "other files", "a file", "again"])
def test_a_folder_that_belongs_to_another_run_is_refused(tiny: Any, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "run"
    prepare: dict[str, Callable[[], object]] = {
        "other recipe": lambda: go(tiny, out, "train.epochs=1"),
        "again": lambda: go(tiny, out, "train.epochs=1"),
        "other files": lambda: (out.mkdir(), (out / "thesis.txt").write_text("years of work")),
        "a file": lambda: out.write_text("text"),
    }
    prepare[kind]()
    expected = {
        "other recipe": "belongs to a run of another recipe: 'epochs: 1.0' there, 'epochs: 2.0' here",
        "again": "go on with --resume or name another --out",
        "other files": "with other files; name another",
        "a file": "expected a folder for the run, got a file",
    }[kind]
    epochs = "train.epochs=2" if kind == "other recipe" else "train.epochs=1"
    with pytest.raises(UserError) as caught:
        go(tiny, out, epochs, resume=kind == "other recipe")
    assert expected in str(caught.value)
