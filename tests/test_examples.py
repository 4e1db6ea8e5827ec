"""Every example runs as a user would run it, and shows what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_hand_written_loop(tmp_path: Path) -> None:
    output = run("hand_written_loop.py", tmp_path)
    assert "kl: weight 0.9, temperature 2, standardize False" in output
    assert "linear 6->64" in output
    teacher, student = map(float, re.findall(r"(?:teacher|student) (0\.\d+)", output))
    assert teacher > 0.9
    assert student > 0.85
