"""A Potstill training step over a hand-written loop with the same calls, timed in turns in one run.

    python benchmarks/step.py [--rounds 30] [--precision auto]

ResNet-56 teaches ResNet-20 on 32x32 images at batch 128 with ``kl`` and ``attention_transfer``. Both sides
make the same batches (uint8 images in memory, flip and padded crop, normalisation), call the same losses
and the same optimiser; Potstill's side is the loop of ``potstill.train`` with its counts, checks and logs.
Prints the median time of each and the median of the paired ratios, then what checkpoints and metrics cost.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from potstill.augment import Augment, AugmentConfig
from potstill.batch import Batch, Signals
from potstill.data.arrays import ArraySet
from potstill.data.loader import Loader
from potstill.environment import processor
from potstill.losses import attention_transfer, kl
from potstill.matching.objective import Objective
from potstill.models.cifar import resnet20, resnet56
from potstill.models.preprocessing import IMAGENET
from potstill.schemes import Offline
from potstill.train.loop import Training
from potstill.train.observe import MetricsFile
from potstill.train.precision import Precision, choose
from potstill.train.settings import TrainConfig
from potstill.train.wishes import Wishes

BATCH = 128
STAGES = ("layer1", "layer2", "layer3")
AUGMENT = Augment(AugmentConfig(flip=0.5, crop=4), seed=0)
CPU = torch.device("cpu")


def data() -> ArraySet:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (BATCH * 20, 32, 32, 3)).astype(np.uint8)
    return ArraySet(images, rng.integers(0, 10, len(images)), [str(n) for n in range(10)], "random")


def prepare(images: torch.Tensor, labels: torch.Tensor, index: torch.Tensor, view: int) -> Batch:
    pixels = IMAGENET.normalise(AUGMENT(images, index, view)).contiguous(memory_format=torch.channels_last)
    return Batch({"student": pixels, "teacher": pixels}, labels, None, index, view)


def supervised(signals: Signals, batch: Batch) -> torch.Tensor:
    assert batch.target is not None
    return cross_entropy(signals.output.float(), batch.target, reduction="none")


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    teacher, student = resnet56(), resnet20()
    return teacher.to(memory_format=torch.channels_last), student.to(memory_format=torch.channels_last)


def taps(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a hand-written loop does: a hook a stage."""
    found: dict[str, torch.Tensor] = {}
    for path in STAGES:

        def keep(_module: nn.Module, _args: Any, output: torch.Tensor, path: str = path) -> None:
            found[path] = output

        model.get_submodule(path).register_forward_hook(keep)
    return found


class ByHand:
    """The loop that one writes oneself."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.teacher, self.student = networks()
        self.teacher.eval().requires_grad_(False)
        self.theirs, self.ours = taps(self.teacher), taps(self.student)
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "fused": True}
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1, **options)
        self.batches = self._batches()

    def _batches(self) -> Any:
        loader = Loader(data(), batch_size=BATCH, seed=0)
        epoch = 0
        while True:
            for images, labels, index in loader.epoch(epoch):
                yield prepare(images, labels, index, epoch)
            epoch += 1

    def step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        batch = next(self.batches)
        with self.precision.autocast(CPU):
            logits = self.student(batch.inputs["student"])
            with torch.no_grad():
                answers = self.teacher(batch.inputs["teacher"])
        loss = 0.1 * cross_entropy(logits.float(), batch.target)
        loss = loss + 0.9 * kl(logits, answers, temperature=4.0).mean()
        for path in STAGES:
            loss = loss + 1000 * attention_transfer(self.ours[path], self.theirs[path]).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


class Package:
    """The same step by potstill.train, with its checks and its log."""

    def __init__(self, precision: Precision, folder: Path, steps: int) -> None:
        teacher, student = networks()
        source = data()
        objective = Objective(
            {
                "labels": {"weight": 0.1},
                "kl": {"weight": 0.9, "temperature": 4.0},
                "attention_transfer": {"weight": 1000.0, "layers": list(STAGES)},
            },
            supervised,
        )
        example = prepare(*source.__getitems__([0, 1]), 0)
        config = TrainConfig(steps=steps, batch_size=BATCH, schedule="constant", warmup=0.0)
        self.training = Training(
            Offline(student, teacher, objective, example=example),
            Loader(source, batch_size=BATCH, seed=0),
            prepare,
            config,
            precision=precision,
            device=CPU,
            folder=folder,
            observer=MetricsFile(folder / "metrics.jsonl", "student", 0),
            evaluate=lambda model: {"accuracy": 0.0},
            metric="accuracy",
        )
        self.training.learners.begin()
        self.batches = self.training.course.batches(0, prepare)

    def step(self) -> float:
        """Seconds of one step."""
        start = time.perf_counter()
        self.training.stepper.take(self.training.step, next(self.batches), Wishes())
        self.training.step += 1
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bf16"])
    options = parser.parse_args()
    precision = choose(options.precision, CPU, resnet20())
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {precision.reason}")
    with tempfile.TemporaryDirectory() as name:
        hand, package = ByHand(precision), Package(precision, Path(name), steps=10_000)
        for _ in range(3):
            hand.step(), package.step()
        pairs = []
        for number in range(options.rounds):
            # who goes first alternates, so that neither always runs on the other's warm caches
            first, second = (hand, package) if number % 2 else (package, hand)
            times = {type(first): first.step()}
            times[type(second)] = second.step()
            pairs.append((times[ByHand], times[Package]))
        by_hand, by_package = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = sorted(package / hand for hand, package in pairs)
        print(f"by hand  {by_hand * 1e3:7.1f} ms a step")
        print(f"potstill {by_package * 1e3:7.1f} ms a step")
        print(
            f"ratio    {statistics.median(ratios):7.3f} (median of {len(ratios)} pairs; quartiles "
            f"{ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f}; goal 1.03)"
        )
        print_overhead(package, by_package)


def print_overhead(package: Package, seconds: float) -> None:
    """What a checkpoint an epoch and 200 rows of metrics cost, as shares of a run of 350 steps an epoch."""
    watch = time.perf_counter()
    for _ in range(5):
        package.training.save()
    checkpoint = (time.perf_counter() - watch) / 5
    watch = time.perf_counter()
    for _ in range(20):
        package.training.log()
    row = (time.perf_counter() - watch) / 20
    epoch, rows_an_epoch = 350 * seconds, 200 / 8
    share = (checkpoint + rows_an_epoch * row) / epoch
    print(
        f"checkpoint {checkpoint * 1e3:.1f} ms, row of metrics {row * 1e3:.2f} ms: {share:.3%} of a run of "
        "8 epochs of 350 steps (goal 2 %)"
    )


if __name__ == "__main__":
    main()
