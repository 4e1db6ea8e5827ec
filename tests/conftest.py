"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    and threading.current_thread() is threading.main_thread()
):
    # A shell's background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

NETS = '''
import torch
from torch import nn


class Net(nn.Module):
    """Two small layers on 1x6x6 images."""

    def __init__(self, width: int, num_classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(width * 36, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.conv(images)).flatten(1))


def big(num_classes: int = 3) -> nn.Module:
    return Net(8, num_classes)


def small(num_classes: int = 3) -> nn.Module:
    return Net(2, num_classes)


def stubborn(num_classes: int = 3) -> nn.Module:
    return Net(2, num_classes=7)


def no_module() -> str:
    return "text"
'''

RECIPE = """task: classification
data: {kind: arrays, path: blobs}
teacher: {model: "nets.py:big", weights: teacher.safetensors, mean: [0.5], std: [0.25]}
student: {model: "nets.py:small"}
distill:
  labels: {weight: 0.1}
  kl: {weight: 0.9, temperature: 2}
  hint: {loss: feature_mse, weight: 1, layers: [conv]}
train: {epochs: 2, batch_size: 16, learning_rate: 0.05, precision: float32}
"""


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


@dataclass(frozen=True)
class Tiny:
    """A whole project small enough to run in a second: data, networks, teacher and recipe."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "tiny.yaml"

    @property
    def data(self) -> Path:
        return self.root / "blobs"

    @property
    def teacher(self) -> Path:
        return self.root / "teacher.safetensors"


def blobs(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of noisy 6x6 images: a bright left, middle or right third."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 120, (count, 6, 6))
    for row, label in enumerate(labels):
        images[row, :, 2 * label : 2 * label + 2] += 90
    return images.astype(np.uint8), labels.astype(np.int64)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    """A fresh tiny project."""
    root = tmp_path / "tiny project"
    (root / "blobs").mkdir(parents=True)
    for part, count, seed in (("train", 120, 0), ("test", 60, 1)):
        images, labels = blobs(count, seed)
        np.save(root / "blobs" / f"{part}_images.npy", images)
        np.save(root / "blobs" / f"{part}_labels.npy", labels)
    (root / "blobs" / "classes.txt").write_text("left\nmiddle\nright\n")
    (root / "nets.py").write_text(NETS)
    (root / "tiny.yaml").write_text(RECIPE)
    weights = torch.zeros(8, 1, 3, 3)
    weights[:, 0, 1, 1] = 1.0
    head = torch.zeros(3, 8, 6, 6)
    for label in range(3):
        head[label, :, :, 2 * label : 2 * label + 2] = 0.05
    state = {
        "conv.weight": weights,
        "conv.bias": torch.zeros(8),
        "head.weight": head.reshape(3, -1).contiguous(),
        "head.bias": torch.zeros(3),
    }
    save_file(state, root / "teacher.safetensors")
    return Tiny(root)
