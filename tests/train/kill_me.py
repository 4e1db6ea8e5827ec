"""A training that its test kills: ``python kill_me.py FOLDER RESUME``; prints a hash of the final weights."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.batch import Batch, Signals
from potstill.data.arrays import ArraySet
from potstill.data.loader import Loader
from potstill.matching.objective import Objective
from potstill.schemes import Offline
from potstill.train import TrainConfig, train
from potstill.train.observe import MetricsFile
from potstill.train.precision import choose


def network(width: int) -> nn.Module:
    layers = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)
    return nn.Sequential(*layers, nn.Linear(width * 16, 3))


def supervised(signals: Signals, batch: Batch) -> Tensor:
    assert batch.target is not None
    return cross_entropy(signals.output, batch.target, reduction="none")


def prepare(images: Tensor, labels: Tensor, index: Tensor, view: int) -> Batch:
    time.sleep(0.002)  # leaves the test time to kill in the middle of an epoch
    return Batch({"student": images.float() / 255}, labels, None, index, view)


def evaluate(networks: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
    return {name: {"accuracy": 0.5} for name in networks}


def main(folder: Path, resume: bool) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (96, 6, 6)).astype(np.uint8), np.arange(96) % 3
    data = ArraySet(images, labels, ("a", "b", "c"), "test")
    teacher, student = network(6), network(2)
    example = prepare(*data.__getitems__([0, 1]), 0)
    terms = {"kl": {}, "hint": {"loss": "feature_mse", "weight": 1.0, "layers": ["0"]}}
    scheme = Offline(student, teacher, Objective(terms, supervised), example=example)
    config = TrainConfig(
        epochs=6,
        batch_size=8,
        accumulate=2,
        learning_rate=0.05,
        ema=0.9,
        checkpoint_every=3,
        precision="float32",
    )
    trained = train(
        scheme,
        Loader(data, batch_size=8, seed=0),
        prepare,
        config,
        precision=choose("float32", torch.device("cpu"), student),
        device=torch.device("cpu"),
        folder=folder / "checkpoints",
        observer=MetricsFile(folder / "metrics.jsonl", "student", 0),
        evaluate=evaluate,
        metric="accuracy",
        resume=resume,
        seed=1,
    )
    if trained.interrupted:
        sys.exit(130)
    digest = hashlib.sha256()
    for name, tensor in [*trained.last_state.items(), *scheme.state_dict().items()]:
        digest.update(name.encode() + tensor.numpy().tobytes())
    print(digest.hexdigest())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "resume")
