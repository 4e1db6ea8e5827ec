"""Kill it at any time, lose nothing: resumed weights equal those of a run that was never killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from potstill.errors import UserError
from potstill.train.state import Checkpoints

SCRIPT = Path(__file__).parent / "kill_me.py"


def start(folder: Path, mode: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder), mode]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip()


def wait_for_checkpoints(folder: Path, process: subprocess.Popen[str], beyond: int) -> None:
    """Until a checkpoint after step ``beyond`` is there, or the process ended."""
    while process.poll() is None:
        steps = [int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("step-*.pt")]
        if steps and max(steps) > beyond:
            return
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of the final weights of a run that nobody touched."""
    return finish(start(tmp_path_factory.mktemp("undisturbed"), "new"))


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, undisturbed: str) -> None:
    kills = 0
    for beyond in (0, 9, 21):
        process = start(tmp_path, "resume")
        wait_for_checkpoints(tmp_path, process, beyond)
        time.sleep(0.013 * (kills + 1))  # somewhere between two checkpoints
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == 3
    assert finish(start(tmp_path, "resume")) == undisturbed
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [row["step"] for row in rows if "parts" in row]
    assert logged == sorted(set(logged))
    assert logged == list(range(1, 37))


def test_an_interrupted_run_saves_and_goes_on(tmp_path: Path, undisturbed: str) -> None:
    process = start(tmp_path, "new")
    wait_for_checkpoints(tmp_path, process, 4)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert finish(start(tmp_path, "resume")) == undisturbed


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a killed run left behind, two checkpoints among it."""
    folder = tmp_path_factory.mktemp("killed")
    process = start(folder, "new")
    wait_for_checkpoints(folder, process, 12)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    return folder


def damage(folder: Path, how: str) -> Path:
    newest = Checkpoints(folder / "checkpoints").paths()[-1]
    content = bytearray(newest.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"torn": content[:1000], "flipped": content, "empty": b""}[how])
    return newest


@pytest.mark.parametrize("how", ["torn", "flipped", "empty"])
def test_a_damaged_checkpoint_is_noticed(tmp_path: Path, killed: Path, how: str) -> None:
    shutil.copytree(killed, tmp_path / "run")
    newest = damage(tmp_path / "run", how)
    payload, notes = Checkpoints(tmp_path / "run" / "checkpoints").latest()
    assert payload is not None
    assert payload["step"] < int(newest.name.split("-")[1])
    assert newest.name in notes[0]
    assert "damaged" in notes[0]


def test_a_run_goes_on_past_a_damaged_checkpoint(tmp_path: Path, killed: Path, undisturbed: str) -> None:
    shutil.copytree(killed, tmp_path / "run")
    damage(tmp_path / "run", "torn")
    assert finish(start(tmp_path / "run", "resume")) == undisturbed


def test_a_damaged_checkpoint_does_not_push_out_good_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (50, 100):
        newest = checkpoints.save(step, {"step": step})
    newest.write_bytes(b"torn")
    left = tmp_path / f".{newest.stem}.1.partial.pt"  # of a process that was killed while it wrote
    left.write_bytes(b"half")
    for step in (60, 70):
        checkpoints.save(step, {"step": step})
    assert [path.name.split("-")[1] for path in checkpoints.paths()] == ["00000060", "00000070"]
    assert not left.exists()


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.save(1, {"step": 1})
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="all 1 checkpoints are damaged"):
        checkpoints.latest()


def test_two_checkpoints_are_kept_and_none_is_half_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 5):
        checkpoints.save(step, {"step": step, "weights": torch.ones(3)})
    assert [path.name.split("-")[1] for path in checkpoints.paths()] == ["00000003", "00000004"]
    assert not list(tmp_path.glob(".*partial*"))
    payload, notes = checkpoints.latest()
    assert payload is not None
    assert payload["step"] == 4
    assert notes == []
