"""A small scheme in float64 without batch norm, and how the tests of the loop train it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill import distributed
from potstill.batch import Batch, Signals
from potstill.data.arrays import ArraySet
from potstill.data.loader import Loader
from potstill.matching.objective import Objective
from potstill.schemes import Offline
from potstill.train import TrainConfig, Trained, train
from potstill.train.course import Prepare
from potstill.train.observe import Many
from potstill.train.precision import choose

TERMS: dict[str, Any] = {
    "labels": {"weight": 0.5},
    "kl": {"weight": 0.9, "temperature": 2.0},
    "hint": {"loss": "feature_mse", "weight": 1.0, "layers": ["0"]},
}


def network(width: int, dropout: float = 0.0) -> nn.Module:
    layers = nn.Conv2d(1, width, 3), nn.Tanh(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width * 16, 3)
    return nn.Sequential(*layers).double()


def data(count: int = 48) -> ArraySet:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (count, 6, 6)).astype(np.uint8), np.arange(count) % 3
    return ArraySet(images, labels, ("a", "b", "c"), "test")


def supervised(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None
    values = cross_entropy(signals.output, batch.target, reduction="none")
    return values if batch.where is None else values.masked_fill(~batch.where, 0.0)


def in_float64(images: Tensor, labels: Tensor, index: Tensor, view: int) -> Batch:
    return Batch({"student": images.double() / 255}, labels, None, index, view)


def unevenly_counted(images: Tensor, labels: Tensor, index: Tensor, view: int) -> Batch:
    """As :func:`in_float64`; of any few samples quite another share counts than of any others."""
    where = (index * 7 + index // 5) % 4 == 0
    return Batch({"student": images.double() / 255}, labels, where, index, view)


class Log(Many):
    """Remembers what the loop tells."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Mapping[str, Any]] = []
        self.lines: list[str] = []

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def say(self, line: str) -> None:
        self.lines.append(line)


def train_small(
    folder: Path,
    config: TrainConfig,
    *,
    terms: dict[str, Any] | None = None,
    accuracies: Iterable[float] = (),
    prepare: Prepare = in_float64,
    dropout: float = 0.0,
    resume: bool = False,
) -> tuple[Offline, Trained, Log]:
    """Train the small scheme; ``accuracies`` are what validation finds, epoch by epoch."""
    torch.manual_seed(3)
    teacher, student = network(6), network(2, dropout)
    source = data()
    example = in_float64(*source.__getitems__([0, 1]), 0)
    scheme = Offline(
        student, teacher, Objective(terms or TERMS, supervised), example=example, samples=len(source)
    ).double()
    found = iter(accuracies)
    log = Log()
    trained = train(
        scheme,
        Loader(
            source,
            batch_size=config.batch_size,
            seed=0,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        ),
        prepare,
        config,
        precision=choose("float32", torch.device("cpu"), student),
        device=torch.device("cpu"),
        folder=folder,
        observer=log,
        evaluate=lambda networks: {name: {"accuracy": next(found, 0.0)} for name in networks},
        metric="accuracy",
        resume=resume,
        seed=1,
    )
    return scheme, trained, log
