"""The verbs as a user types them, in a process of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from potstill.cli import app


def potstill(*words: str, cwd: Path | None = None, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the command; with several processes through torchrun on this machine."""
    command = [sys.executable, "-m", "potstill", *words]
    if processes > 1:
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, "-m", *launch, "-m", "potstill", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("POTSTILL_DATA", None)
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=240)


@pytest.fixture
def finished(tiny: Any, tmp_path: Path) -> Path:
    """A finished run folder, made by the command."""
    words = ("run", str(tiny.recipe), "--data", str(tiny.root), "--out", str(tmp_path / "run"))
    done = potstill(*words, "--set", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_run_measure_report_and_export(tiny: Any, finished: Path) -> None:
    measured = potstill("measure", str(finished))
    assert measured.returncode == 0, measured.stderr
    for word in ("teacher", "student", "parameters", "MACs", "batch 1:", "batch 64:"):
        assert word in measured.stdout
    (finished / "report.html").unlink()
    drawn = potstill("report", str(finished))
    assert drawn.returncode == 0, drawn.stderr
    assert (finished / "report.html").stat().st_size > 10_000
    pytest.importorskip("onnxruntime")
    exported = potstill("export", str(finished))
    assert exported.returncode == 0, exported.stderr
    assert "agrees with the trained student on 60 test samples" in exported.stdout
    assert (finished / "student.onnx").is_file()


def test_a_mistake_is_one_line_and_exit_code_two(tiny: Any, tmp_path: Path) -> None:
    words = ("run", str(tiny.recipe), "--data", str(tiny.root), "--out", str(tmp_path / "run"))
    wrong = potstill(*words, "--set", "distill.kl.temperature=-1")
    assert wrong.returncode == 2
    assert wrong.stderr == "distill.kl.temperature: must be > 0, got -1\n"
    assert wrong.stdout == ""
    assert not (tmp_path / "run").exists()
    shown = potstill(*words, "--set", "distill.kl.temperature=-1", "--traceback")
    assert shown.returncode == 2
    assert "Traceback" in shown.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run",), "RECIPE: missing"),
        (("run", "cifar10-resnet9"), "did you mean 'cifar10-resnet8'"),
        (("run", "demo", "--data", "nowhere"), "--data: expected a folder, got nowhere"),
        (("measure", "nowhere"), "no such run folder"),
        (("report", "."), "report.json: cannot read what the report is drawn from"),
        (("methods", "kll"), "kll: no such method; did you mean 'kl'?"),
    ],
)
def test_mistakes_of_the_verbs(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    wrong = potstill(*words, cwd=tmp_path)
    assert wrong.returncode == 2
    assert message in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_a_wrong_option_is_not_boxed_or_wrapped_in_a_pipe() -> None:
    wrong = potstill("run", "demo", "--resum")
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("Error: No such option: --resum")
    assert not set("╭│") & set(wrong.stderr)


def test_errors_of_the_system_start_with_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = {
        130: KeyboardInterrupt(),
        2: PermissionError(13, "Permission denied", "here/report.json"),
    }
    for code, failure in failures.items():

        def fail(folder: Path, beside: Path | None, failure: BaseException = failure) -> Path:
            raise failure

        monkeypatch.setattr("potstill.report.render", fail)
        done = CliRunner().invoke(app, ["report", "."])
        assert done.exit_code == code
        said = "interrupted" if code == 130 else "here/report.json: Permission denied"
        assert done.stderr == f"{said}\n"
    monkeypatch.setenv("RANK", "1")
    assert CliRunner().invoke(app, ["report", "."]).stderr == ""


def test_memory_that_runs_out_anywhere_names_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    for failure in (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), MemoryError()):

        def fail(folder: Path, beside: Path | None, failure: BaseException = failure) -> Path:
            raise failure

        monkeypatch.setattr("potstill.report.render", fail)
        done = CliRunner().invoke(app, ["report", "."])
        assert done.exit_code == 2
        assert done.stderr.startswith("data.max_length: out of memory outside of training steps: lower it")
        assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = [sys.executable, "-m", "potstill", "methods"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    said = running.stderr.read()
    running.stderr.close()
    assert running.wait(timeout=60) == 0
    assert said == b""


def test_lists_and_pages(tmp_path: Path) -> None:
    assert "cifar10-resnet8" in potstill("run", "--list").stdout.split()
    page = potstill("methods", "kl").stdout
    for word in ("formula: T^2", "https://arxiv.org/abs/1503.02531", "kl: {weight: 0.9, temperature: 4.0}"):
        assert word in page
    assert "attention_transfer" in potstill("methods").stdout
    assert potstill("--version").stdout.startswith("potstill ")


def test_dry_trains_nothing_and_leaves_nothing(tiny: Any, tmp_path: Path) -> None:
    words = ("run", str(tiny.recipe), "--data", str(tiny.root), "--out", str(tmp_path / "run"))
    done = potstill(*words, "--dry")
    assert done.returncode == 0, done.stderr
    for word in ("teacher:", "student:", "matched:", "estimate:"):
        assert word in done.stdout
    assert not (tmp_path / "run").exists()


def test_the_demo_shows_what_distillation_gains(tmp_path: Path) -> None:
    done = potstill("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "potstill-demo" / "run" / "result.json").read_text())
    teacher, student = (result["models"][name] for name in ("teacher", "student"))
    assert result["verdict"] == "better"
    assert result["gain"] >= 0.02
    assert result["seeds"] == 3
    assert teacher["parameters"] >= 8 * student["parameters"]
    report = tmp_path / "potstill-demo" / "run" / "report.html"
    assert done.stdout.splitlines()[-1] == f"report: {report}"
    written = report.stat().st_mtime_ns
    again = potstill("demo", cwd=tmp_path)
    assert "finished already" in again.stdout
    assert report.stat().st_mtime_ns == written
    (tmp_path / "other" / "potstill-demo").mkdir(parents=True)
    (tmp_path / "other" / "potstill-demo" / "thesis.txt").write_text("mine")
    refused = potstill("demo", cwd=tmp_path / "other")
    assert refused.returncode == 2
    assert "thesis.txt" in refused.stderr


def test_ctrl_c_saves_says_how_to_go_on_and_going_on_ends_the_same(tiny: Any, tmp_path: Path) -> None:
    words = ["run", str(tiny.recipe), "--data", str(tiny.root), "--set", "train.epochs=40"]
    whole = potstill(*words, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    command = [sys.executable, "-m", "potstill", *words, "--out", str(tmp_path / "cut")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    while running.poll() is None and not list((tmp_path / "cut").glob("checkpoints/student-0/step-*.pt")):
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "go on with: potstill run" in said
    assert "--resume" in said
    resumed = potstill(*words, "--out", str(tmp_path / "cut"), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    one, two = (load_file(tmp_path / name / "student.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


BROKEN_DISK = """
import os
import numpy as np
import torch
from torch.utils.data import Dataset


class Images(Dataset):
    reads = 0

    def __init__(self, part):
        folder = os.path.join(os.path.dirname(__file__), "blobs")
        self.images = torch.from_numpy(np.load(f"{folder}/{part}_images.npy"))[:, None]
        self.labels = np.load(f"{folder}/{part}_labels.npy")

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        Images.reads += 1
        if os.environ["RANK"] == "1" and Images.reads > 5:
            raise OSError(5, "Input/output error", "lost.png")
        return self.images[index], int(self.labels[index])


def parts():
    return Images("train"), Images("test")
"""


def test_what_fails_in_one_process_only_is_said_once(tiny: Any, tmp_path: Path) -> None:
    (tiny.root / "disk.py").write_text(BROKEN_DISK)
    words = ["run", str(tiny.recipe), "--data", str(tiny.root), "--out", str(tmp_path / "run")]
    words += ["--set", "data.kind=own", "--set", "data.path=disk.py:parts"]
    failed = potstill(*words, processes=2)
    assert failed.returncode != 0
    ours = [line for line in failed.stderr.splitlines() if "lost.png" in line or "[rank0]" in line]
    assert len(ours) == 1, failed.stderr
    assert ours[0].startswith("data.path: ")
    wrong = potstill(*words, "--set", "distill.kl.temperature=-1", processes=2)
    assert wrong.stderr.count("distill.kl.temperature: must be > 0, got -1") == 1


def test_the_way_on_starts_as_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from potstill import run

    stopped = run.Result(Path("here/it is"), {}, interrupted=True)
    monkeypatch.setattr(run, "run", lambda *words, **options: stopped)
    said = "interrupted, and saved; go on with: {} run demo --out 'here/it is' --set seeds=1 --resume\n"
    words = ["run", "demo", "--set", "seeds=1"]
    alone = CliRunner().invoke(app, words)
    assert (alone.exit_code, alone.stderr) == (130, said.format("potstill"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    both = CliRunner().invoke(app, words)
    assert (both.exit_code, both.stderr) == (130, said.format("torchrun --nproc-per-node 2 -m potstill"))


def test_two_processes_run_a_recipe_and_one_writes(tiny: Any, tmp_path: Path) -> None:
    words = ("run", str(tiny.recipe), "--data", str(tiny.root))
    both = potstill(*words, "--out", str(tmp_path / "two"), processes=2)
    assert both.returncode == 0, both.stderr
    one = potstill(*words, "--out", str(tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    for arm in ("control", "student"):
        first, second = (result["models"][arm]["accuracy"] for result in results)
        assert second == pytest.approx(first, abs=0.02)
    assert results[0]["models"]["teacher"]["accuracy"] == results[1]["models"]["teacher"]["accuracy"]
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    steps = [(row["arm"], row["step"]) for row in rows if "parts" in row]
    assert len(steps) == len(set(steps))
    assert both.stdout.count("gain of distillation") == 1
