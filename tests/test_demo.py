"""The built-in demo: its data, and its whole course at a small size."""

from __future__ import annotations

import inspect
import json
import signal
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from potstill.config import load
from potstill.data.arrays import load_arrays
from potstill.demo import demo
from potstill.errors import UserError
from potstill.models import digits
from potstill.run import Result, load_student
from potstill.train import stepping

DIGITS = Path(str(resources.files("potstill") / "data" / "digits.npz"))
SHORT = ("train.epochs=3", "seeds=2")


def small(out: Path, echo: Callable[[str], None] = lambda line: None, **options: Any) -> Result:
    return demo(out, echo, overrides=SHORT, **{"teacher_epochs": 4, **options})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, list[str]]:
    out = tmp_path_factory.mktemp("a place") / "potstill-demo"
    lines: list[str] = []
    return out, small(out, lines.append), lines


def test_the_digits_are_whole() -> None:
    parts = load_arrays(DIGITS)
    assert {name: len(part) for name, part in parts.items()} == {"train": 1000, "test": 797}
    assert parts["train"].class_names == tuple("0123456789")
    counts = sum(np.bincount(part.labels.numpy()) for part in parts.values())
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as published
    with np.load(DIGITS) as archive:
        images = np.concatenate([archive["train_images"], archive["test_images"]])
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    assert np.isin(images, np.round(np.arange(17) * 255 / 16)).all()  # 0..16, scaled
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == 1797  # none in both parts


def test_the_recipe_tells_what_it_does() -> None:
    recipe = load("demo")
    notes = " ".join(recipe.notes)
    assert (recipe.data.limit, recipe.data.validation, recipe.seeds) == (100, 0.1, 3)
    steps = recipe.train.epochs * (recipe.data.limit // recipe.train.batch_size)
    told = (
        "900 labelled training images, for 40 epochs",
        "the same 100 of those 900",
        f"{steps:g} steps each",
    )
    assert [words for words in told if words not in notes] == []
    assert inspect.signature(demo).parameters["teacher_epochs"].default == 40
    assert recipe.augment.crop == 1
    assert "one pixel" in notes


def test_a_demo_leaves_a_teacher_a_run_and_a_report(done: tuple[Path, Result, list[str]]) -> None:
    out, result, lines = done
    assert {path.name for path in out.iterdir()} == {"teacher", "run"}
    assert [path.name for path in (out / "teacher").iterdir()] == ["teacher.safetensors"]
    assert result.report.is_file()
    assert "900 labelled training images" in result.report.read_text(encoding="utf-8")
    models = result.data["models"]
    assert models["teacher"]["parameters"] >= 8 * models["student"]["parameters"]
    assert models["teacher"]["accuracy"] > 0.5
    assert len(models["control"]["per_seed"]) == len(models["student"]["per_seed"]) == 2
    assert result.verdict in ("better", "same", "worse")
    assert "gain of distillation" in result.table()
    assert lines[0] == "training a teacher on all labels"
    assert any("only 100 of 900 training samples" in line for line in lines)


def test_a_finished_demo_is_shown_again(done: tuple[Path, Result, list[str]]) -> None:
    out, result, _ = done
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    lines: list[str] = []
    assert small(out, lines.append).data == result.data
    assert "finished already" in lines[0]
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == written


def test_the_run_can_be_loaded_from_elsewhere(
    done: tuple[Path, Result, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_student(done[0] / "run")
    assert isinstance(loaded.student, digits.DigitNet)
    assert len(loaded.test) == 797


def test_the_demo_computes_with_one_thread_and_gives_the_others_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        demo(tmp_path / "out", lambda line: None, overrides=["train.epochs=1", "seeds=1"], teacher_epochs=1)
        assert torch.get_num_threads() == 2
        facts = json.loads((tmp_path / "out" / "run" / "environment.json").read_text())
        assert facts["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_a_relative_folder_is_remembered_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    demo(Path("here"), lambda line: None, overrides=["train.epochs=1", "seeds=1"], teacher_epochs=2)
    facts = json.loads((tmp_path / "here" / "run" / "environment.json").read_text())
    assert str(tmp_path / "here" / "teacher") in facts["search"]


class Interrupts:
    """Press Ctrl-C in one step of the loop, counted over all trainings."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.take = stepping.Stepper.take

    def __call__(self, stepper: stepping.Stepper, *args: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return self.take(stepper, *args)


@pytest.mark.parametrize("step", [20, 56 + 9], ids=["teacher", "student"])
def test_an_interrupted_demo_goes_on_and_ends_the_same(
    done: tuple[Path, Result, list[str]], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "cut"
    interrupts = Interrupts(step)
    with monkeypatch.context() as patch:
        patch.setattr(stepping.Stepper, "take", lambda self, *args: interrupts(self, *args))
        cut = small(out)
    assert cut.interrupted
    assert not (out / "run" / "result.json").exists()
    assert (out / "teacher" / "teacher.safetensors").exists() == (step > 56)
    again = small(out)
    assert not again.interrupted
    for name in ("teacher/teacher.safetensors", "run/student.safetensors"):
        whole, resumed = load_file(done[0] / name), load_file(out / name)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert again.gain == done[1].gain


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not the demo's \(thesis\.txt\)"):
        demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="expected a folder for the demo, got a file"):
        demo(tmp_path / "thesis.txt")
