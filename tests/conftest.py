"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the unpacked real data; a test that asks for it skips without, but fails in CI."""
    folder = os.environ.get("POTSTILL_DATA")
    if folder and Path(folder, "cifar10").is_dir():
        return Path(folder)
    message = "POTSTILL_DATA does not name the unpacked real data"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
