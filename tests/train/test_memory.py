"""Freed memory stays with the process, where the C library lets it; never against the environment."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from potstill.train.memory import keep_freed_memory

COUNT = """
import resource, torch
from potstill.train.memory import keep_freed_memory
torch.set_num_threads(1)
kept = {kept}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        tensors = [torch.ones(1 << 23) for _ in range(4)]  # 32 MiB each: always from the system by default
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(kept, faults())
"""


def glibc() -> bool:
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def told(kept: str) -> tuple[str, int]:
    """What a process of its own answers, and the pages that 20 rounds of the same tensors took."""
    command = [sys.executable, "-c", COUNT.format(kept=kept)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer, pages = done.stdout.split()
    return answer, int(pages)


@pytest.mark.skipif(not glibc(), reason="needs the GNU C library")
def test_freed_tensors_cost_no_pages_again() -> None:
    (kept, few), (_, many) = told("keep_freed_memory()"), told("None")
    assert kept == "True"
    assert few * 20 < many


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert keep_freed_memory() is False


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
