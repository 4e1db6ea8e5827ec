"""Generators: how much faster students are than their teacher, and what the scheme costs over a plain loop.

    python benchmarks/generators.py [--rounds 20] [--side 256] [--threads 1] [--only latency|step]

Latency: Johnson's generator of 1.68 million parameters against students of width 8, full and separable, one
image of ``side`` pixels, in torch and in onnxruntime, all timed in turns. Step: both phases of
``scheme: adversarial`` (pixels, two layers, a discriminator with spectral norms; batch 4 of 64 pixels) by
potstill's loop over a hand-written one that does the same, in pairs whose order alternates (goal 1.03).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu

from potstill.batch import Batch
from potstill.data.arrays import ArraySet
from potstill.data.loader import Loader
from potstill.deploy.export import write_model
from potstill.environment import processor
from potstill.matching.objective import Objective
from potstill.models.discriminators import PatchDiscriminator
from potstill.models.generators import StyleGenerator
from potstill.schemes import Adversarial
from potstill.train.loop import Training
from potstill.train.observe import MetricsFile
from potstill.train.precision import choose
from potstill.train.settings import TrainConfig
from potstill.train.wishes import Wishes

CPU = torch.device("cpu")
BATCH, SIDE = 4, 64
PAIRS = (("up1", 64, 16), ("up2", 32, 8))
RATES: dict[str, Any] = {"lr": 0.003, "betas": (0.9, 0.999), "weight_decay": 0.0, "fused": True}


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call, timed in turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= 2:
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(each) for name, each in times.items()}


def latency(rounds: int, side: int, threads: int) -> None:
    """Teacher and students, in both runtimes."""
    import onnxruntime

    torch.manual_seed(0)
    networks = {
        "teacher": StyleGenerator(),
        "width 8": StyleGenerator(width=8),
        "width 8, separable": StyleGenerator(width=8, separable=True),
    }
    images = torch.rand(1, 3, side, side)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    calls: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in networks.items():
            network.eval().requires_grad_(False)
            path = Path(folder) / f"{len(calls)}.onnx"
            write_model(network, images.repeat(2, 1, 1, 1), path, {}, output="answer")
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            given = {"images": images.numpy()}
            calls[f"{name}, torch"] = lambda network=network: network(images)
            calls[f"{name}, onnxruntime"] = lambda session=session, given=given: session.run(None, given)
        found = timed(calls, rounds)
    for name, network in networks.items():
        count = sum(each.numel() for each in network.parameters())
        row = [found[f"{name}, {engine}"] for engine in ("torch", "onnxruntime")]
        best = [found[f"teacher, {engine}"] for engine in ("torch", "onnxruntime")]
        ratios = ", ".join(f"{many / one:.1f} times" for many, one in zip(best, row, strict=True))
        print(
            f"{name:20} {count:9,} parameters  torch {row[0]:7.1f} ms  onnxruntime {row[1]:7.1f} ms  {ratios}"
        )


def networks() -> tuple[nn.Module, nn.Module, nn.Module]:
    """Student, teacher and discriminator, the same each time."""
    torch.manual_seed(0)
    student, teacher = StyleGenerator(width=8), StyleGenerator()
    judge = PatchDiscriminator(width=16, spectral_norm=True)
    return student, teacher.eval().requires_grad_(False), judge


def data() -> ArraySet:
    images = np.random.default_rng(0).integers(0, 255, (BATCH * 20, SIDE, SIDE, 3)).astype(np.uint8)
    return ArraySet(images, np.arange(len(images)) % 2, ["even", "odd"], "random")


def prepare(images: Tensor, labels: Tensor, index: Tensor, view: int) -> Batch:
    return Batch({"student": images.float() / 255.0}, None, None, index, view)


class ByHand:
    """The loop that one writes oneself."""

    def __init__(self) -> None:
        self.student, self.teacher, self.judge = networks()
        self.adapters = nn.ModuleList(nn.Conv2d(ours, theirs, 1, bias=False) for _, theirs, ours in PAIRS)
        self.theirs, self.ours = (self._taps(model) for model in (self.teacher, self.student))
        learning = [*self.student.parameters(), *self.adapters.parameters()]
        self.first, self.second = (
            torch.optim.AdamW(some, **RATES) for some in (learning, self.judge.parameters())
        )
        self.batches = self._batches()

    def _batches(self) -> Iterator[Batch]:
        loader = Loader(data(), batch_size=BATCH, seed=0)
        for epoch in itertools.count():
            for images, labels, index in loader.epoch(epoch):
                yield prepare(images, labels, index, epoch)

    def _taps(self, model: nn.Module) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for path, _, _ in PAIRS:

            def keep(_module: nn.Module, _args: Any, output: Tensor, path: str = path) -> None:
                found[path] = output

            model.get_submodule(path).register_forward_hook(keep)
        return found

    def step(self) -> float:
        """Seconds of one step of both phases."""
        start = time.perf_counter()
        images = next(self.batches).tensor("student")
        fake = self.student(images)
        with torch.no_grad():
            real = self.teacher(images)
        loss = 10 * (fake - real).abs().mean()
        for (path, _, _), adapter in zip(PAIRS, self.adapters, strict=True):
            loss = loss + 1.5 * mse_loss(adapter(self.ours[path]), self.theirs[path])
        self.judge.requires_grad_(False)
        loss = loss - 0.02 * self.judge(fake).mean()
        loss.backward()
        self.judge.requires_grad_(True)
        self.first.step()
        self.first.zero_grad()
        of_real, of_fake = self.judge(torch.cat([real, fake.detach()])).chunk(2)
        (0.5 * (relu(1 - of_real).mean() + relu(1 + of_fake).mean())).backward()
        self.second.step()
        self.second.zero_grad()
        return time.perf_counter() - start


class Package:
    """The same step by potstill.train, with its checks and its log."""

    def __init__(self, folder: Path) -> None:
        student, teacher, judge = networks()
        source = data()
        example = prepare(*source.__getitems__([0, 1]), 0)
        terms = {
            "image_l1": {"weight": 10},
            "feature_mse": {"weight": 3, "layers": [["up1"] * 2, ["up2"] * 2]},
        }
        options = {"steps": 10_000, "batch_size": BATCH, "optimizer": "adamw", "weight_decay": 0.0}
        self.training = Training(
            Adversarial(student, teacher, Objective(terms), judge, example=example, weight=0.02),
            Loader(source, batch_size=BATCH, seed=0),
            prepare,
            TrainConfig(**options, learning_rate=0.003, schedule="constant", warmup=0.0),
            precision=choose("float32", CPU, student),
            device=CPU,
            folder=folder,
            observer=MetricsFile(folder / "metrics.jsonl", "student", 0),
            evaluate=lambda model: {"psnr": 0.0},
            metric="psnr",
        )
        self.training.learners.begin()
        self.batches = self.training.course.batches(0, prepare)

    def step(self) -> float:
        """Seconds of one step of both phases."""
        start = time.perf_counter()
        self.training.stepper.take(self.training.step, next(self.batches), Wishes())
        self.training.step += 1
        return time.perf_counter() - start


def step(rounds: int) -> None:
    """Both loops in pairs."""
    with tempfile.TemporaryDirectory() as name:
        hand, package = ByHand(), Package(Path(name))
        for _ in range(3):
            hand.step(), package.step()
        pairs = []
        for number in range(rounds):
            first, second = (hand, package) if number % 2 else (package, hand)
            times = {type(first): first.step()}
            times[type(second)] = second.step()
            pairs.append((times[ByHand], times[Package]))
    by_hand, by_package = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
    ratio = statistics.median(mine / other for other, mine in pairs)
    print(f"a step by hand {by_hand:.1f} ms, by potstill {by_package:.1f} ms: {ratio:.3f} (goal 1.03)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["latency", "step"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}")
    if options.only != "step":
        latency(options.rounds, options.side, options.threads)
    if options.only != "latency":
        step(options.rounds)


if __name__ == "__main__":
    main()
