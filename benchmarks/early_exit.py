"""A run's network with early exits against the whole network and smaller ones: wall clock and points lost.

    potstill run cifar10-early-exit --data DIR --out RUN
    python benchmarks/early_exit.py RUN --data DIR --answers RUN/answers.npz

Thresholds are chosen anew for each stated loss on the run's calibration samples and reported on its others,
as the run itself does. Torch and onnxruntime, batch 1 and 64, each side in turns over the same images, which
leave in the shares of all. The smaller ResNets of ``DIR/weights`` were trained alike, without distillation;
their accuracy is that on the same samples; so is that of the student of ``--distilled``. "Both halves" are
all test samples: thresholds chosen on each half are applied to the other.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from potstill.config import load
from potstill.data import Splits
from potstill.deploy import Choice, EarlyExit, OnnxEarlyExit, Policy, choose, export_exits, export_onnx
from potstill.deploy.candidates import leave
from potstill.early_exits import Parts, parts_of
from potstill.early_exits.costs import typical
from potstill.environment import processor
from potstill.files import read_json
from potstill.measure import parameters
from potstill.models import cifar
from potstill.models.exits import EXIT, WithExits
from potstill.models.preprocessing import Preprocessing
from potstill.models.segments import cut
from potstill.models.weights import load_weights
from potstill.run import LoadedRun, load_student
from potstill.schemes.settings import DeepSupervisionConfig

Logits = list[np.ndarray[Any, Any]]
SMALLER = ("resnet32", "resnet20")


@dataclass(frozen=True)
class Plain:
    """What the plain export takes."""

    student: nn.Module
    loaded: LoadedRun

    @property
    def preprocessing(self) -> Preprocessing:
        """As the run's."""
        return self.loaded.preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """As the run's."""
        return self.loaded.class_names

    def samples(self, count: int) -> Tensor:
        """The first images."""
        return self.loaded.samples(count)


@torch.no_grad()
def answers(network: nn.Module, loaded: LoadedRun, part: Any) -> Logits:
    """Logits of all exits and of the whole network, ``(N, classes)`` each."""
    rows = []
    for start in range(0, len(part), 200):
        images = part.images(list(range(start, min(start + 200, len(part)))))
        signals = network(prepared(loaded, images))
        every = [signals]
        if isinstance(network, WithExits):
            every = [*(signals.taps[EXIT + path] for path in network.paths), signals.output]
        rows.append(torch.stack(every))
    return list(torch.cat(rows, dim=1).numpy())


def prepared(loaded: LoadedRun, images: Tensor) -> Tensor:
    """What the network takes, channels last."""
    return loaded.preprocessing.normalise(images).contiguous(memory_format=torch.channels_last)


def smaller(folder: Path, distilled: Path | None) -> dict[str, nn.Module]:
    """The trained smaller networks."""
    found = {}
    for name in SMALLER:
        found[name] = getattr(cifar, name)()
        load_weights(found[name], folder / "weights" / f"cifar10_{name}.safetensors", name)
    if distilled:
        found[f"student of {distilled}"] = load_student(distilled, folder).student
    return {name: each.eval().to(memory_format=torch.channels_last) for name, each in found.items()}


def ratio(
    whole: Callable[[Any], Any], other: Callable[[Any], Any], batches: Sequence[Any], rounds: int
) -> float:
    """The median over rounds of whole / other, in turns."""
    with torch.no_grad():
        for call in (whole, other) * 2:
            call(batches[0])
        found = []
        for number in range(rounds):
            spent = [0.0, 0.0]
            for batch in batches:
                for side in (0, 1) if number % 2 else (1, 0):  # neither always runs on warm caches
                    start = time.perf_counter()
                    (whole, other)[side](batch)
                    spent[side] += time.perf_counter() - start
            found.append(spent[0] / spent[1])
    return statistics.median(found)


class Clock:
    """The whole network in both engines, and others against it."""

    def __init__(self, network: WithExits, loaded: LoadedRun, folder: Path, rounds: int) -> None:
        self.network = network
        self.loaded = loaded
        self.folder = folder
        self.rounds = rounds
        self.session = self.onnx(network.model)
        self.folded = cut(network.model, (), torch.zeros(2, 3, 32, 32), quick=True).parts[0]
        never = Policy("probability", (float("inf"),) * len(network.paths))
        some = loaded.samples(16).float() / 255
        export_exits(network, never, some, folder / "exits", preprocessing=loaded.preprocessing)

    def onnx(self, model: nn.Module) -> Callable[[Any], Any]:
        """A network in onnxruntime."""
        export_onnx(Plain(model, self.loaded), self.folder / "plain.onnx")
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        path = str(self.folder / "plain.onnx")
        session: Any = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return lambda batch: session.run(None, {"images": batch})

    def early(self, policy: Policy, images: Tensor) -> str:
        """The ratios of a policy; the second of torch is over the whole network with folded batch norms."""
        runtime = OnnxEarlyExit(self.folder / "exits", policy, threads=torch.get_num_threads())
        early = EarlyExit(self.network, policy, torch.zeros(2, 3, 32, 32))
        return self._row(early, runtime, images, folded=True)

    def other(self, model: nn.Module, images: Tensor) -> str:
        """The ratios of another network."""
        return self._row(model, self.onnx(model), images, folded=False)

    def _row(self, torch_side: Any, onnx_side: Any, images: Tensor, *, folded: bool) -> str:
        text = []
        for size in (1, 64):
            floats = [(batch.float() / 255).numpy() for batch in images.split(size) if len(batch) == size]
            floats = floats[: max(4, 128 // size)]
            batches = [prepared(self.loaded, torch.from_numpy(batch)) for batch in floats]
            row = f"batch {size}: torch {ratio(self.network.model, torch_side, batches, self.rounds):.2f}"
            if folded:
                row += f" ({ratio(self.folded, torch_side, batches, self.rounds):.2f} over folded)"
            row += f", onnxruntime {ratio(self.session, onnx_side, floats, self.rounds):.2f}"
            text.append(row)
        return "; ".join(text)


def show(choice: Choice, report: Logits, labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Print what was chosen and what it does to the reporting samples; the exit that each takes."""
    taken = leave(choice.policy, report)
    right = np.stack([each.argmax(axis=1) == labels for each in report])
    full, early = right[-1], right[taken, np.arange(len(labels))]
    shares = np.bincount(taken, minlength=len(report)) / len(taken)
    print(
        f"{choice.policy.kind}, wished {100 * (choice.wished or 0):.2f}, promised "
        f"{100 * choice.promised:.2f} points: lost {100 * (full.mean() - early.mean()):+.2f} "
        f"({100 * early.mean():.2f} of {100 * full.mean():.2f} %), wrongly left "
        f"{100 * (full & ~early).mean():.2f}, shares {' '.join(f'{100 * one:.0f}' for one in shares)} %"
        + (f"\n  {choice.note}" if choice.note else "")
    )
    return taken


def crossed(halves: Sequence[Logits], labels: Sequence[Any], wish: float, **how: Any) -> str:
    """What is lost on all samples where each half chooses the thresholds for the other."""
    lost, early = [], []
    for here, there in ((0, 1), (1, 0)):
        policy = choose(halves[here], labels[here], max_loss=wish, **how).policy
        taken = leave(policy, halves[there])
        right = np.stack([each.argmax(axis=1) == labels[there] for each in halves[there]])
        lost.append(right[-1].astype(float) - right[taken, np.arange(len(taken))])
        early.append(taken < len(right) - 1)
    return (
        f"both halves: lost {spread(np.concatenate(lost))}, {100 * np.concatenate(early).mean():.0f} % early"
    )


def spread(lost: np.ndarray[Any, Any]) -> str:
    """Mean and 95 % interval in points."""
    reach = 1.96 * lost.std() / len(lost) ** 0.5
    return (
        f"{100 * lost.mean():+.2f} [{100 * (lost.mean() - reach):+.2f}, {100 * (lost.mean() + reach):+.2f}]"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="finished run with early exits")
    parser.add_argument("--data", type=Path, required=True, help="folder with the data and weights/")
    parser.add_argument("--answers", type=Path, help="logits of all networks, written where missing")
    parser.add_argument("--losses", default="0.005,0.01,0.015,0.02", help="stated losses")
    parser.add_argument("--kinds", default="probability", help="probability,margin,entropy,patience")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 times nothing")
    parser.add_argument("--smaller", action="store_true", help="time the smaller networks too")
    parser.add_argument("--distilled", type=Path, help="finished run whose student is another one of these")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} thread(s), torch {torch.__version__}")
    loaded = load_student(options.run, options.data)
    config = load(options.run / "recipe.yaml").scheme
    assert isinstance(config, DeepSupervisionConfig)
    assert isinstance(loaded.student, WithExits)
    network = loaded.student.requires_grad_(False).to(memory_format=torch.channels_last)
    more = parameters(network) / parameters(network.model) - 1
    print(f"exits at {', '.join(network.paths)}: {100 * more:.1f} % more parameters (goal at most 15)")
    parts = parts_of(replace(config, calibrate_on=config.calibrate_on or 0.5), Splits(*[loaded.test] * 3))
    compared(network, loaded, parts, options)


def compared(network: WithExits, loaded: LoadedRun, parts: Parts, options: argparse.Namespace) -> None:
    """Print the curve's points and the smaller networks."""
    others = smaller(options.data, options.distilled)
    kept = dict(np.load(options.answers)) if options.answers and options.answers.is_file() else {}
    halves = {"calibration": parts.calibration, "reporting": parts.reporting}
    for half, part in halves.items():
        for name, model in {"exits": network, **others}.items():
            if f"{name}, {half}" not in kept:
                kept[f"{name}, {half}"] = np.stack(answers(model, loaded, part))
    if options.answers:
        np.savez(options.answers, **kept)
    labels = [part.labels.numpy() for part in halves.values()]
    logits = [list(kept[f"exits, {half}"]) for half in halves]
    (calibration, report), truth = logits, labels
    for name, each in zip([*network.paths, "whole"], report, strict=True):
        print(f"  {name:10} {100 * (each.argmax(axis=1) == truth[1]).mean():.2f} %")
    costs = [row["macs"] for row in read_json(options.run / "result.json")["early_exit"]["exits"]]
    with tempfile.TemporaryDirectory() as temporary:
        clock = Clock(network, loaded, Path(temporary), options.rounds) if options.rounds else None
        for kind in options.kinds.split(","):
            for wish in map(float, options.losses.split(",")):
                choice = choose(calibration, truth[0], kind=kind, max_loss=wish, costs=costs)
                taken = show(choice, report, truth[1])
                print(f"  {crossed(logits, labels, wish, kind=kind, costs=costs)}")
                if clock:
                    images = parts.reporting.images(typical(taken, 256).tolist())
                    print(f"  whole / early: {clock.early(choice.policy, images)}", flush=True)
        for name, model in others.items():
            answered = [
                kept[f"{name}, {half}"][0].argmax(axis=1) == right
                for half, right in zip(halves, labels, strict=True)
            ]
            whole = [each[-1].argmax(axis=1) == right for each, right in zip(logits, labels, strict=True)]
            less = np.concatenate(whole).astype(float) - np.concatenate(answered)
            print(f"{name}: {100 * answered[1].mean():.2f} %; both halves: lost {spread(less)}")
            if clock and options.smaller:
                images = parts.reporting.images(list(range(256)))
                print(f"  whole / {name}: {clock.other(model, images)}", flush=True)


if __name__ == "__main__":
    main()
