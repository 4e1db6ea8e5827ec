"""Early exits of a run: parts without a sample in common, a promise, figures, export, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from potstill.cli import app
from potstill.config import load
from potstill.data import Splits
from potstill.data.arrays import ArraySet
from potstill.data.dataset import Subset
from potstill.data.loader import Loader
from potstill.deploy.early_exit import EarlyExit, load_policy
from potstill.deploy.guarantee import least_promise
from potstill.early_exits import Parts, parts_of
from potstill.early_exits.costs import typical
from potstill.early_exits.shifts import SHIFTS, Shifted
from potstill.errors import UserError
from potstill.models.exits import WithExits
from potstill.report import render
from potstill.run import load_student, run
from potstill.schemes.settings import DeepSupervisionConfig
from potstill.tasks import Classification
from tests.test_schemes_run import write

HALF = "{kind: deep_supervision, exits: [first], calibrate_on: 0.5, max_loss: 0.2}"
CHOOSY = '''

class Choosy(Staged):
    """Its way depends on the data."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.first(images)
        if maps.sum() > 1e9:
            maps = -maps
        return self.head(self.second(maps).mean(dim=(2, 3)))
'''


def go(
    tiny: Any, out: Path, scheme: str, student: str = "Staged", epochs: int = 3, **options: Any
) -> tuple[Any, str]:
    lines: list[str] = []
    path = write(tiny, scheme, student=student, epochs=epochs, learning_rate=0.2)
    result = run(path, data=tiny.root, out=out, echo=lines.append, **options)
    return result, "\n".join(lines)


@pytest.fixture
def done(tiny: Any, tmp_path: Path) -> tuple[Path, Any, str]:
    result, said = go(tiny, tmp_path / "run", HALF)
    return tmp_path / "run", result, said


def test_a_run_writes_thresholds_and_what_they_do(done: tuple[Path, Any, str]) -> None:
    folder, result, said = done
    found = result.data["early_exit"]
    assert found["calibration"]["samples"] == found["reporting"]["samples"] == 30
    assert found["calibration"]["part"] == "test"
    assert found["wish"] == {"max_loss": 0.2}
    assert [row["name"] for row in found["exits"]] == ["first", "deepest"]
    assert sum(row["share"] for row in found["exits"]) == pytest.approx(1)
    assert found["exits"][0]["macs"] < found["exits"][1]["macs"]
    assert found["chosen"]["lost"] <= found["chosen"]["risk"]
    assert set(found["policies"]) == set(found["curves"]) == {"probability", "entropy", "margin", "patience"}
    assert set(found["chosen"]["timed"]["1"]) >= {"early", "whole", "folded", "whole_over_early"}
    assert found["shift"] == []
    kept = json.loads((folder / "early_exit.json").read_text())
    assert kept["policy"] == found["policy"]
    assert kept["promised"] == found["promised"]
    assert "early exits at first: the network can be cut there" in said
    assert "early exit by probability: " in said


def test_the_figures_are_those_of_the_reporting_half(done: tuple[Path, Any, str]) -> None:
    """The run-time itself, on the samples that did not choose the thresholds."""
    folder, result, _ = done
    loaded = load_student(folder)
    assert isinstance(loaded.student, WithExits)
    config = DeepSupervisionConfig(calibrate_on=0.5)
    part = parts_of(config, Splits(loaded.test, loaded.test, loaded.test)).reporting
    images, labels, _ = part.__getitems__(list(range(len(part))))
    inputs = loaded.preprocessing.normalise(images)
    policy = load_policy(folder / "early_exit.json", loaded.student)
    left = EarlyExit(loaded.student, policy, inputs[:2])(inputs)
    chosen = result.data["early_exit"]["chosen"]
    assert float((left.logits.argmax(dim=1) == labels).double().mean()) == pytest.approx(chosen["accuracy"])
    shares = left.exits.bincount(minlength=2) / len(part)
    assert shares.tolist() == pytest.approx(chosen["shares"])


def test_every_network_answers_the_test_part_once(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    predict = Classification.predict

    def counted(self: Classification, model: Any, loader: Loader, role: str) -> Tensor:
        asked.append(len(loader.dataset))
        return predict(self, model, loader, role)

    monkeypatch.setattr(Classification, "predict", counted)
    result, _ = go(tiny, tmp_path / "run", HALF, epochs=1)  # the last epoch is the best
    assert len(result.data["networks"]) == 2
    assert asked.count(result.data["test_samples"]) == 2  # the control, and the student with all exits
    assert result.data["early_exit"]["reporting"]["samples"] not in asked


def arrays(count: int) -> ArraySet:
    images = np.arange(count * 16, dtype=np.uint8).reshape(count, 1, 4, 4)
    return ArraySet(images, np.arange(count) % 4, tuple("abcd"), "images")


@pytest.mark.parametrize("calibrate_on", [0.5, 12, 0.25])
def test_no_sample_both_calibrates_and_reports(calibrate_on: float) -> None:
    whole = arrays(40)
    parts = parts_of(DeepSupervisionConfig(calibrate_on=calibrate_on), Splits(whole, whole, whole))
    assert isinstance(parts.calibration, Subset)
    assert isinstance(parts.reporting, Subset)
    first, second = set(parts.calibration.indices.tolist()), set(parts.reporting.indices.tolist())
    assert not first & second
    assert first | second == set(range(40))
    assert len(first) == (calibrate_on if calibrate_on > 1 else 40 * calibrate_on)


def test_without_a_word_validation_calibrates() -> None:
    train, validation, test = arrays(4), arrays(8), arrays(12)
    parts = parts_of(DeepSupervisionConfig(), Splits(train, validation, test))
    assert parts == Parts(validation, test, "validation")


def test_thresholds_of_another_network_are_refused(
    done: tuple[Path, Any, str], tiny: Any, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    folder, _, _ = done
    go(tiny, tmp_path / "other", HALF, epochs=1, overrides=["seed=7"])
    shutil.copy(tmp_path / "other" / "early_exit.json", folder / "early_exit.json")
    refused = CliRunner().invoke(app, ["export", str(folder)])
    assert refused.exit_code == 2
    assert "early_exit.json: these thresholds were chosen for another network" in refused.output
    assert not (folder / "early_exit").exists()


def test_too_small_a_part_says_what_it_can_promise(tiny: Any, tmp_path: Path) -> None:
    scheme = "{kind: deep_supervision, exits: [first], calibrate_on: 0.5, max_loss: 0.01}"
    result, said = go(tiny, tmp_path / "run", scheme)
    least = least_promise(21)  # of 30 samples, 9 fit the temperatures
    found = result.data["early_exit"]
    assert found["promised"] == pytest.approx(least)
    assert "21 test samples are too few to promise 0.01" in found["note"]
    before, _, after = said.partition("scheme: deep_supervision")
    assert "21 calibration images are too few to promise 1 points: the best that they can promise" in before
    assert "warning: early exit: 21 test samples are too few" in after
    page = (tmp_path / "run" / "report.html").read_text()
    assert "21 test samples are too few to promise 0.01" in page


def test_a_stated_latency(tiny: Any, tmp_path: Path) -> None:
    scheme = "{kind: deep_supervision, exits: [first], calibrate_on: 0.5, max_latency_ms: 1e-6}"
    found = go(tiny, tmp_path / "run", scheme)[0].data["early_exit"]
    assert found["wish"] == {"max_latency_ms": 1e-6}
    assert "no thresholds have a mean cost of 1e-06" in found["note"]
    assert found["chosen"]["shares"][0] > 0.8


def test_weights_that_may_have_seen_the_calibration_images(tiny: Any, tmp_path: Path) -> None:
    go(tiny, tmp_path / "first", HALF)
    weights = tmp_path / "first" / "checkpoints" / "control-0" / "last.safetensors"
    scheme = "{kind: deep_supervision, exits: [first], max_loss: 0.3}"
    result, said = go(tiny, tmp_path / "run", scheme, overrides=[f"student.weights={weights}"])
    assert result.data["early_exit"]["calibration"]["part"] == "validation"
    assert "which the given student.weights may have seen" in said
    assert "which the given student.weights may have seen" in (tmp_path / "run" / "report.html").read_text()


def test_shifted_images_are_tried(tiny: Any, tmp_path: Path) -> None:
    result, _ = go(tiny, tmp_path / "run", HALF, overrides=["scheme.shift=true"])
    rows = result.data["early_exit"]["shift"]
    assert [row["name"] for row in rows] == list(SHIFTS)
    for row in rows:
        assert row["kept"] == (row["risk"] <= result.data["early_exit"]["promised"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(name in page for name in SHIFTS)


@pytest.mark.parametrize("scheme", ["deep_supervision", "{kind: deep_supervision, exits: [first]}"])
def test_the_flag_asks_for_shifted_images(tiny: Any, tmp_path: Path, scheme: str) -> None:
    path = write(tiny, scheme, student="Staged")
    words = ["run", str(path), "--data", str(tiny.root), "--out", str(tmp_path / "run"), "--shift"]
    told = CliRunner().invoke(app, [*words, "--dry"])
    assert told.exit_code == 0, told.output
    write(tiny, "mutual")
    refused = CliRunner().invoke(app, [*words, "--dry"])
    assert refused.exit_code == 2
    assert "scheme.shift: unknown key; it belongs to kind: deep_supervision" in refused.output
    for heads, blocks in (("separable", "[3, 1]"), ("residual", "[]")):
        scheme = f"scheme={{kind: deep_supervision, heads: {heads}, head_blocks: {blocks}}}"
        with pytest.raises(UserError, match=r"scheme.head_blocks: expected numbers of residual blocks"):
            load(path, [scheme])
    assert load(path, ["scheme=deep_supervision", "scheme.shift=true"]).scheme == DeepSupervisionConfig(
        shift=True
    )


@pytest.mark.parametrize("floats", [False, True])
def test_shifts_change_images_as_they_say(floats: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (20, 3, 32, 32), generator=generator, dtype=torch.uint8)
    given: Tensor = pixels.float() / 255 if floats else pixels
    whole = ArraySet(given.numpy(), np.arange(20) % 4, tuple("abcd"), "images")
    for shift in SHIFTS:
        changed = Shifted(whole, shift)
        images = changed.images(list(range(20)))
        assert images.dtype == given.dtype
        assert torch.equal(images[[3, 7]], changed.images([3, 7]))
        first, second = given.double(), images.double()
        scale = 1.0 if floats else 255.0
        if shift == "darker":
            torch.testing.assert_close(second, first / 2, rtol=0, atol=0.51 * scale / 255)
        elif shift == "noisy":
            assert 0.06 < float((second - first).std()) / scale < 0.08  # clipped at both ends
        else:
            assert float(second.std()) < 0.6 * float(first.std())
            torch.testing.assert_close(second.mean(), first.mean(), rtol=0.02, atol=0)


def test_a_network_that_cannot_be_cut_says_so_before_training(tiny: Any, tmp_path: Path) -> None:
    write(tiny, HALF)
    nets = tiny.root / "nets.py"
    nets.write_text(nets.read_text() + CHOOSY)
    dry: list[str] = []
    path = write(tiny, HALF, student="Choosy")
    run(path, data=tiny.root, out=tmp_path / "dry", dry=True, echo=dry.append)
    line = "early exits at first will save no time: the network is computed whole, it cannot be cut, as"
    assert line in "\n".join(dry)
    result, said = go(tiny, tmp_path / "run", HALF, student="Choosy")
    assert line in said.partition("scheme: deep_supervision")[0]
    found = result.data["early_exit"]
    assert "cannot be traced" in found["cannot_cut"]
    assert found["exits"][0]["macs"] == found["exits"][1]["macs"]
    assert "The exits save no time" in (tmp_path / "run" / "report.html").read_text()


def test_a_part_that_cannot_be_cut_off_is_refused_before_anything_is_written(
    tiny: Any, tmp_path: Path
) -> None:
    scheme = "{kind: deep_supervision, exits: [first], calibrate_on: 60}"
    with pytest.raises(UserError, match=r"scheme.calibrate_on: cannot cut 60 of 60 samples"):
        go(tiny, tmp_path / "run", scheme)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="scheme: expected one wish, either max_loss or max_latency_ms"):
        go(tiny, tmp_path / "run", "{kind: deep_supervision, max_loss: 0.1, max_latency_ms: 1}")


def test_the_exported_segments_agree_and_measure_goes_on(done: tuple[Path, Any, str]) -> None:
    pytest.importorskip("onnxruntime")
    from potstill.deploy import OnnxEarlyExit

    folder, _, _ = done
    told = CliRunner().invoke(app, ["export", str(folder)])
    assert told.exit_code == 0, told.output
    assert "agrees with the trained network at every exit" in told.output
    assert (folder / "student.onnx").is_file()
    loaded = load_student(folder)
    assert isinstance(loaded.student, WithExits)
    images = loaded.samples(40)
    answer = OnnxEarlyExit(folder / "early_exit")((images.float() / 255).numpy())
    inputs = loaded.preprocessing.normalise(images)
    policy = load_policy(folder / "early_exit.json", loaded.student)
    left = EarlyExit(loaded.student, policy, inputs[:2])(inputs)
    assert answer.exits.tolist() == left.exits.tolist()
    np.testing.assert_allclose(answer.logits, left.logits.numpy(), rtol=1e-3, atol=1e-3)
    measured = CliRunner().invoke(app, ["measure", str(folder)])
    assert measured.exit_code == 0, measured.output


def test_the_page_shows_every_exit(done: tuple[Path, Any, str]) -> None:
    folder, result, _ = done
    page = render(folder).read_text()
    assert "<h2>Early exits</h2>" in page
    for text in ("Accuracy against time", "Who left early, and who late", "Left at first"):
        assert text in page
    content = json.loads((folder / "report.json").read_text())
    assert {one["exit"] for one in content["leavers"]} == {
        row["name"] for row in result.data["early_exit"]["exits"] if row["share"]
    }
    assert set(content["exit_bins"]) == {"first", "deepest"}


def test_images_are_timed_that_leave_as_all_do() -> None:
    taken = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    chosen = typical(taken, 100)
    assert np.bincount(taken[chosen]).tolist() == [60, 30, 10]
    assert len(set(chosen.tolist())) == 100
    assert sorted(typical(taken, 5000).tolist()) == list(range(1000))
