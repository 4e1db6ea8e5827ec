"""A batch's views by Potstill over torchvision's transforms image by image, timed in turns in one run.

    python benchmarks/augment.py [--rounds 7] [--batch 128] [--side 32]

Torchvision's v2 transforms take one draw for a whole batch, so each image goes through them alone, as in a
loader's worker; Potstill draws and changes a batch at once. Both start from the same bytes on one thread.
Prints the median time of a batch for each transform and the median of the paired ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from potstill.augment import Augment, AugmentConfig
from potstill.environment import processor
from potstill.sections import read_section

BILINEAR = InterpolationMode.BILINEAR


def single(transform: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda images: torch.stack([transform(image) for image in images])


def mixed(transform: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """Torchvision's own mixing of a batch, one weight for all, without the labels' cost."""

    def call(images: Tensor) -> Tensor:
        made: Tensor = transform(images.float(), torch.zeros(len(images), dtype=torch.int64))[0]
        return made

    return call


def contests(side: int) -> dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]]:
    """By name: a recipe's section, and torchvision's way."""
    usual = v2.Compose([v2.RandomCrop(side, padding=side // 8), v2.RandomHorizontalFlip()])
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return {
        "crop and flip": ({"crop": side // 8, "flip": 0.5}, single(usual)),
        "resized_crop": ({"resized_crop": {}}, single(v2.RandomResizedCrop(side))),
        "rotation": ({"rotation": 15}, single(v2.RandomRotation(15, BILINEAR))),
        "colour": (
            {"colour": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}},
            single(jitter),
        ),
        "rand_augment": ({"rand_augment": {}}, single(v2.RandAugment())),
        "trivial_augment": ({"trivial_augment": {}}, single(v2.TrivialAugmentWide())),
        "erasing": ({"erasing": 1.0}, single(v2.RandomErasing(p=1.0))),
        "mixup": ({"mixup": 0.2}, mixed(v2.MixUp(alpha=0.2, num_classes=10))),
        "cutmix": ({"cutmix": 1.0}, mixed(v2.CutMix(alpha=1.0, num_classes=10))),
    }


def ours(section: dict[str, Any], size: int) -> Callable[[Tensor], Tensor]:
    """What a training batch goes through; images that are mixed come with their partners."""
    augment = Augment(read_section(AugmentConfig, section, "augment"), seed=0, samples=50_000)
    index, view = torch.arange(size), 0

    def call(images: Tensor) -> Tensor:
        rows = torch.cat([index, augment.partners(index, view)])
        images = augment(images.repeat(len(rows) // size, 1, 1, 1) if augment.mixes else images, rows, view)
        if augment.mixes:
            images, _, _ = augment.mix(images, rows % 10, index, view, classes=10)
        return images

    return call


def seconds(call: Callable[[Tensor], Tensor], images: Tensor) -> float:
    start = time.perf_counter()
    call(images)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--side", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{processor()}, 1 thread, torch {torch.__version__}, {options.batch} images of 3x{options.side}^2")
    images = torch.randint(0, 256, (options.batch, 3, options.side, options.side), dtype=torch.uint8)
    print(f"{'':16}{'potstill':>11}{'torchvision':>14}{'ratio':>8}")
    for name, (section, theirs) in contests(options.side).items():
        mine = ours(section, options.batch)
        mine(images), theirs(images)
        pairs = [(seconds(mine, images), seconds(theirs, images)) for _ in range(options.rounds)]
        first, second = (statistics.median(times) * 1e3 for times in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"{name:16}{first:8.2f} ms{second:11.2f} ms{ratio:8.2f}")


if __name__ == "__main__":
    main()
