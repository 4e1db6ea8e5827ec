"""What a cached teacher costs, and how close its stored answers come, in one run.

    python benchmarks/cache.py [--rounds 8] [--photos DIR --mobilenet FILE]

ResNet-56 teaches ResNet-8 on 32x32 images (random pixels and weights: only times count) at batch 128 with
``kl``, through Potstill's own loop and loader. Steps with labels only, a live teacher, a cache that fills and
a full cache are timed in turns, CPU time on one thread; the cost of 32 epochs with 8 views is computed from
the medians of the parts. Then the speed of reading, and sizes and divergences of the codes: for ten classes
with made-up logits, for 1,000 with MobileNetV2's answers to crops of photographs, where both are given.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from potstill.assembly.load import load_experiment
from potstill.cache import CacheConfig, Identity, Vault
from potstill.cache.codes import Affine, Code, Float, Top
from potstill.cache.fidelity import divergence
from potstill.config import from_mapping
from potstill.environment import processor
from potstill.experiment import Experiment
from potstill.models.cifar import resnet56
from potstill.models.weights import save_weights
from potstill.train.loop import Training
from potstill.train.observe import Many
from potstill.train.wishes import Wishes

BATCH = 128
STEPS = 4
EPOCHS, VIEWS = 32, 8
CLASSES = 1000


def experiment(folder: Path, *, cached: bool) -> Experiment:
    """The recipe on random images; the cache has a folder of its own."""
    cache = {"cache": {"views": 1 << 20, "path": str(folder / "cache")}} if cached else {}
    recipe = {
        "data": {"kind": "arrays", "path": "images"},
        "augment": {"flip": 0.5, "crop": 4},
        "teacher": {"model": "potstill.models.cifar:resnet56", "weights": "teacher.safetensors", **cache},
        "student": {"model": "potstill.models.cifar:resnet8"},
        "distill": {"labels": {"weight": 0.1}, "kl": {"weight": 0.9, "temperature": 4}},
        "train": {"epochs": 1 << 20, "batch_size": BATCH, "gradient_norms": 0},
    }
    return load_experiment(from_mapping(recipe), [folder])


def make_data(folder: Path) -> None:
    """Random images, a batch of validation, and a teacher."""
    (folder / "images").mkdir()
    draws = np.random.default_rng(0)
    for part, count in (("train", BATCH * STEPS), ("validation", BATCH), ("test", BATCH)):
        np.save(
            folder / "images" / f"{part}_images.npy", draws.integers(0, 255, (count, 32, 32, 3), np.uint8)
        )
        np.save(folder / "images" / f"{part}_labels.npy", np.arange(count) % 10)
    torch.manual_seed(0)
    save_weights(resnet56(), folder / "teacher.safetensors", {})


class Way:
    """One way to train, a step at a time; ``views`` epochs come again."""

    def __init__(self, made: Experiment, arm: str, folder: Path, views: int | None) -> None:
        loader, prepare = made.training(0)
        if made.shelf is not None:
            made.shelf.writing = True
        self.training = Training(
            made.scheme("control" if arm == "labels" else "student", 0),
            loader,
            lambda *rows: prepare(*rows[:3], rows[3] if views is None else rows[3] % views),
            made.recipe.train,
            precision=made.precision,
            device=made.device,
            folder=folder / arm,
            observer=Many(),
            evaluate=lambda networks: {name: {"accuracy": 0.0} for name in networks},
            metric="accuracy",
        )
        self.batches = self.training.course.batches(0, self.training.prepare)
        self.number = 0

    def step(self) -> float:
        """CPU seconds of one step, its batch included."""
        begin = time.process_time()
        self.training.stepper.take(self.number, next(self.batches), Wishes())
        self.number += 1
        return time.process_time() - begin


def train(folder: Path, rounds: int) -> None:
    """Steps of all ways in turns."""
    make_data(folder)
    live, made = experiment(folder, cached=False), experiment(folder, cached=True)
    ways = {
        "labels": Way(live, "labels", folder, None),
        "cached": Way(made, "cached", folder, 1),  # the first epoch fills its one view
        "filling": Way(made, "filling", folder, None),  # every epoch is new
        "live": Way(live, "live", folder, None),
    }
    for way in ways.values():
        for _ in range(STEPS):
            way.step()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds * STEPS):
        for name, way in ways.items():
            seconds[name].append(way.step())
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    pairs = zip(seconds["cached"], seconds["labels"], strict=True)
    ratio = statistics.median(one / other for one, other in pairs)
    print(", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in middle.items()), "a step of 128")
    print(f"an epoch with cached logits over one with labels only: {ratio:.3f} (goal 1.05)")
    whole = EPOCHS * middle["live"], VIEWS * middle["filling"] + (EPOCHS - VIEWS) * middle["cached"]
    print(f"{EPOCHS} epochs, live over {VIEWS} cached views with filling: {whole[0] / whole[1]:.2f} (goal 2)")


def read(folder: Path) -> None:
    """Reading records of 1,000 classes in the order of a shuffled epoch, from the page cache."""
    count = 40_000
    vault = Vault(folder / "read", Identity({}), CacheConfig(fidelity=1e-3), samples=count)
    logits = torch.randn(count, CLASSES)
    for rows in np.array_split(np.arange(count), 40):
        vault.keep(0, rows, {"": logits[torch.from_numpy(rows)]})
    assert vault.layout is not None, "what was kept has a layout"
    times: dict[str, list[float]] = {"read and checked": [], "and decoded": []}
    order = np.random.default_rng(0).permutation(count)
    for rows in np.array_split(order, count // BATCH):
        begin = time.process_time()
        records, there = vault.read(0, rows)
        times["read and checked"].append(time.process_time() - begin)
        vault.layout.decode(records)
        times["and decoded"].append(time.process_time() - begin)
        assert there.all(), "all was written"
    size = count * (vault.layout.size + 4) / 1e6
    print("; ".join(f"{name}: {size / sum(taken):.0f} MB/s" for name, taken in times.items()), "(goal 200)")


def answers(photos: Path, weights: Path) -> Tensor:
    """MobileNetV2's logits ``(N, 1000)`` for crops of photographs, as ImageNet is read for training."""
    from torchvision.models import mobilenet_v2
    from torchvision.transforms import v2

    network = mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.eval()
    torch.manual_seed(0)
    crop = v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip()])
    mean, std = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        found = [network((torch.stack(part) - mean) / std) for part in _crops(photos, crop)]
    return torch.cat(found)


def _crops(photos: Path, crop: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    from torchvision.io import read_image

    part: list[Tensor] = []
    for path in sorted(photos.rglob("*.jpg")):
        part.append(crop(read_image(str(path))) / 255)
        if len(part) == 32:
            yield part
            part = []


def tell(what: str, logits: Tensor, codes: list[Code], temperatures: tuple[float, ...]) -> None:
    """Size, divergence and agreement of each code."""
    print(f"{what}, {len(logits)} answers")
    for code in codes:
        decoded = code.decode(code.encode(logits), logits.shape[1])
        kl = ", ".join(
            f"{float(divergence(logits, decoded, each).mean()):.1e} at T={each:g}" for each in temperatures
        )
        agreed = (decoded.argmax(dim=1) == logits.argmax(dim=1)).double().mean()
        size = code.width(logits.shape[1])
        print(f"  {code.name:10} {size + size % 2 + 4:5} bytes a view; mean KL {kl}; same class {agreed:.2%}")


def main() -> None:
    """Run all parts and print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--mobilenet", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(processor(), "one thread, CPU time")
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), chosen.rounds)
        read(Path(folder))
    torch.manual_seed(0)
    tell("10 classes, made up", torch.randn(2000, 10) * 5, [Affine(), Float(16)], (1.0, 4.0))
    if chosen.photos and chosen.mobilenet:
        logits = answers(chosen.photos, chosen.mobilenet)
        tell("MobileNetV2 on photographs, 1,000 classes", logits, [Top(39), Affine(), Float(16)], (1.0, 4.0))


if __name__ == "__main__":
    main()
