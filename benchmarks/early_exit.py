"""ResNet-56 with early exits against the whole network: wall clock in torch and onnxruntime, points lost.

    python benchmarks/early_exit.py --data DIR [--exits layer1,layer2] [--steps 400] [--network FILE]

Starts from the weights of ``DIR/weights`` and trains exits only, the network frozen. Half of CIFAR-10's test
images, which no weight has seen, chooses the thresholds for each stated loss; the other half is reported.
Both sides are timed in turns over the same images in one run. ``--network FILE`` keeps the trained network
with its exits (or takes one from there, trained in any way).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.augment import Augment, AugmentConfig
from potstill.deploy import Choice, EarlyExit, OnnxEarlyExit, Policy, choose, export_exits, export_onnx
from potstill.deploy.candidates import leave
from potstill.environment import processor
from potstill.losses import kl
from potstill.measure import parameters
from potstill.models.cifar import resnet56
from potstill.models.exits import EXIT, WithExits
from potstill.models.preprocessing import IMAGENET, Preprocessing
from potstill.models.segments import cut
from potstill.models.weights import load_weights, save_weights

BATCH = 128
TEMPERATURE = 3.0
GOAL, GOAL_LOSS = 1.5, 0.005
NEVER = float("inf")


def images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Pixels ``(N, 3, 32, 32)`` uint8 and labels."""
    pixels = torch.from_numpy(np.load(folder / "cifar10" / f"{part}_images.npy"))
    labels = torch.from_numpy(np.load(folder / "cifar10" / f"{part}_labels.npy").astype(np.int64))
    return (pixels.permute(0, 3, 1, 2) if pixels.shape[-1] == 3 else pixels), labels


def made(exits: str | list[str], folder: Path) -> WithExits:
    """The given ResNet-56 with untrained exits."""
    torch.manual_seed(0)
    model = resnet56()
    load_weights(model, folder / "weights" / "cifar10_resnet56.safetensors", "weights")
    return WithExits(model, exits, torch.zeros(2, 3, 32, 32)).to(memory_format=torch.channels_last)


def train(network: WithExits, folder: Path, steps: int) -> None:
    """Exits alone, on 0.7 of the labels and 0.3 of the whole network's answers (Be Your Own Teacher)."""
    pixels, labels = images(folder, "train")
    augment = Augment(AugmentConfig(flip=0.5, crop=4), seed=0)
    optimiser = torch.optim.AdamW(network.exits.parameters(), lr=4e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    network.requires_grad_(False).eval()
    network.exits.requires_grad_(True).train()
    began = time.perf_counter()
    for step in range(steps):
        index = torch.randint(len(labels), (BATCH,), generator=generator)
        inputs = IMAGENET.normalise(augment(pixels[index], index, step))
        signals = network(inputs.contiguous(memory_format=torch.channels_last))
        loss = torch.zeros(())
        for path in network.paths:
            logits = signals.taps[EXIT + path]
            soft = kl(logits, signals.output, temperature=TEMPERATURE).mean() / TEMPERATURE**2
            loss = loss + 0.7 * cross_entropy(logits, labels[index]) + 0.3 * soft
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"  step {step}: loss {loss.item():.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    network.eval()


@torch.no_grad()
def answers(network: WithExits, pixels: Tensor) -> list[np.ndarray[Any, Any]]:
    """Logits of all exits and of the whole network, ``(N, 10)`` each."""
    found: list[list[Tensor]] = [[] for _ in range(len(network.paths) + 1)]
    for batch in pixels.split(200):
        inputs = IMAGENET.normalise(batch).contiguous(memory_format=torch.channels_last)
        signals = network.eval()(inputs)
        for place, logits in enumerate(
            [*(signals.taps[EXIT + path] for path in network.paths), signals.output]
        ):
            found[place].append(logits)
    return [torch.cat(each).numpy() for each in found]


@dataclass(frozen=True)
class Whole:
    """What the plain export takes."""

    student: nn.Module
    pixels: Tensor
    preprocessing: Preprocessing = IMAGENET
    class_names: tuple[str, ...] = tuple(map(str, range(10)))

    def samples(self, count: int) -> Tensor:
        """The first images."""
        return self.pixels[:count]


def ratio(
    whole: Callable[[Any], Any], early: Callable[[Any], Any], batches: Sequence[Any], rounds: int
) -> tuple[float, float]:
    """Milliseconds a batch of the whole network, and the median over rounds of whole / early."""
    with torch.no_grad():
        for call in (whole, early) * 2:
            call(batches[0])
        times = []
        for number in range(rounds):
            spent = [0.0, 0.0]
            for batch in batches:
                for side in (0, 1) if number % 2 else (1, 0):  # neither always runs on warm caches
                    start = time.perf_counter()
                    (whole, early)[side](batch)
                    spent[side] += time.perf_counter() - start
            times.append(spent)
    scale = 1e3 / len(batches)
    return scale * statistics.median(t[0] for t in times), statistics.median(t[0] / t[1] for t in times)


def costs(network: WithExits, pixels: Tensor) -> list[float]:
    """Milliseconds up to each exit and of the whole, at batch 64."""
    inputs = IMAGENET.normalise(pixels[:64]).contiguous(memory_format=torch.channels_last)
    count = len(network.paths)
    found = []
    for exit_taken in range(count + 1):
        thresholds = tuple(-NEVER if place == exit_taken else NEVER for place in range(count))
        runtime = EarlyExit(network, Policy("probability", thresholds), inputs[:2])
        found.append(min(timed(runtime, inputs) for _ in range(5)))
    return [max(found[: place + 1]) for place in range(count + 1)]


@torch.no_grad()
def timed(call: Callable[[Tensor], Any], inputs: Tensor) -> float:
    start = time.perf_counter()
    call(inputs)
    return 1e3 * (time.perf_counter() - start)


def ratios(
    network: WithExits, choice: Choice, pixels: Tensor, folder: Path, options: argparse.Namespace
) -> dict[str, float]:
    """Whole / early of both engines at batch 1 and 64."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(
        str(folder / "whole.onnx"), settings, providers=["CPUExecutionProvider"]
    )
    runtime = OnnxEarlyExit(folder / "exits", choice.policy, threads=torch.get_num_threads())
    early = EarlyExit(network, choice.policy, torch.zeros(2, 3, 32, 32))
    folded = cut(network.model, (), torch.zeros(2, 3, 32, 32), quick=True).parts[0]  # a faster baseline
    found = {}
    for size, count in ((1, options.images), (64, max(1, options.images // 16))):
        batches = list(pixels[: size * count].split(size))
        inputs = [IMAGENET.normalise(b).contiguous(memory_format=torch.channels_last) for b in batches]
        _, found[f"torch {size}"] = ratio(network.model, early, inputs, options.rounds)
        _, found[f"torch {size} over the folded whole"] = ratio(folded, early, inputs, options.rounds)
        floats = [(batch.float() / 255).numpy() for batch in batches]
        _, found[f"onnx {size}"] = ratio(
            lambda batch: session.run(None, {"images": batch}), runtime, floats, options.rounds
        )
    return found


def show(choice: Choice, report: Sequence[np.ndarray[Any, Any]], labels: np.ndarray[Any, Any]) -> float:
    """Print what was chosen and what it does to the reporting half; the accuracy lost."""
    taken = leave(choice.policy, report)
    right = np.stack([each.argmax(axis=1) == labels for each in report])
    full, early = right[-1].mean(), right[taken, np.arange(len(labels))].mean()
    shares = " ".join(
        f"{100 * share:.0f}" for share in np.bincount(taken, minlength=len(report)) / len(taken)
    )
    print(
        f"{choice.policy.kind:12} wished {100 * (choice.wished or 0):.1f}, promised "
        f"{100 * choice.promised:.2f} points: lost {100 * (full - early):+.2f} ({100 * early:.2f} of "
        f"{100 * full:.2f} %), shares {shares} %",
        flush=True,
    )
    return float(full - early)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/ and weights/")
    parser.add_argument("--exits", default="auto", help="layers, with commas between (default: auto)")
    parser.add_argument("--network", type=Path, help="trained network with exits, written where missing")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--losses", default="0.002,0.005,0.01,0.02", help="stated losses")
    parser.add_argument("--kinds", default="probability,margin,entropy,patience")
    parser.add_argument("--test", type=int, default=10_000, help="test images, half of them to calibrate")
    parser.add_argument("--images", type=int, default=200, help="images timed at batch 1; batches of 64: /16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} threads, torch {torch.__version__}", flush=True)
    network = made("auto" if options.exits == "auto" else options.exits.split(","), options.data)
    more = parameters(network) / parameters(network.model) - 1
    print(f"exits at {', '.join(network.paths)}: {100 * more:.1f} % more parameters (goal at most 15)")
    if options.network and options.network.exists():
        load_weights(network, options.network, "--network")
    else:
        train(network, options.data, options.steps)
        if options.network:
            save_weights(network, options.network)
    sys.exit(run(network.requires_grad_(False).eval(), options))


def run(network: WithExits, options: argparse.Namespace) -> str | int:
    pixels, labels = images(options.data, "test")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[: options.test]
    calibrate, report = order[: len(order) // 2], order[len(order) // 2 :]
    logits = [answers(network, pixels[half]) for half in (calibrate, report)]
    truth = [labels[half].numpy() for half in (calibrate, report)]
    for name, each in zip([*network.paths, "whole"], logits[1], strict=True):
        print(f"  {name:10} {100 * (each.argmax(axis=1) == truth[1]).mean():.2f} %")
    price = costs(network, pixels[report])
    print(f"  milliseconds up to each exit at batch 64: {', '.join(f'{value:.1f}' for value in price)}")
    best = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        export_onnx(Whole(network.model, pixels[report]), folder / "whole.onnx")
        never = Policy("probability", (NEVER,) * len(network.paths))
        some = pixels[report][:16].float() / 255
        export_exits(network, never, some, folder / "exits", preprocessing=IMAGENET)
        for kind in options.kinds.split(","):
            for wish in map(float, options.losses.split(",")):
                choice = choose(logits[0], truth[0], kind=kind, max_loss=wish, costs=price)
                lost = show(choice, logits[1], truth[1])
                if choice.note:
                    print(f"    {choice.note}")
                found = ratios(network, choice, pixels[report], folder, options)
                print("    whole / early: " + ", ".join(f"{k} {v:.2f}" for k, v in found.items()), flush=True)
                if lost <= GOAL_LOSS:
                    best = max(best, min(v for k, v in found.items() if "folded" not in k))
    print(
        f"best at no more than {100 * GOAL_LOSS:.1f} points lost, least of all four: {best:.2f} (goal {GOAL})"
    )
    return 0 if best >= GOAL else "goal missed"


if __name__ == "__main__":
    main()
