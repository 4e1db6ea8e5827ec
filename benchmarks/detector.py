"""A distilling step of a detector over the plain step and its teacher's answer, timed in turns in one run.

    python benchmarks/detector.py [--rounds 12] [--precision auto]

The networks are those of the recipe ``bccd-detector`` (Faster R-CNN on MobileNetV2, a student of a seventh of
its teacher's parameters), with random weights, on batches of 8 random images of 240 x 320 with 14 boxes each.
Both steps are schemes as a run has them, without the optimiser, which is the same; the teacher answers alone
to the student's regions. Prints the median times and the median of the ratios by round.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from potstill.batch import Batch, Signals
from potstill.config import load
from potstill.environment import processor
from potstill.matching.objective import Objective
from potstill.models.detectors import faster_rcnn
from potstill.schemes import Offline
from potstill.train.precision import Precision, choose

BATCH, HEIGHT, WIDTH, BOXES = 8, 240, 320, 14
CPU = torch.device("cpu")


def batch_of(random: torch.Generator) -> Batch:
    """Random images with boxes."""
    images = torch.randn(BATCH, 3, HEIGHT, WIDTH, generator=random)
    first = torch.rand(BATCH, BOXES, 2, generator=random) * torch.tensor([WIDTH - 70.0, HEIGHT - 70.0])
    boxes = torch.cat([first, first + 20 + 50 * torch.rand(BATCH, BOXES, 2, generator=random)], dim=2)
    labels = torch.randint(1, 4, (BATCH, BOXES), generator=random)
    shares = boxes / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    return Batch(
        {
            "student": {"images": images, "boxes": boxes, "labels": labels},
            "teacher": {"images": images, "proposals": torch.zeros(BATCH, 0, 4)},
        },
        torch.cat([shares, labels[..., None]], dim=2),
        None,
        torch.arange(BATCH),
    )


def supervised(signals: Signals, batch: Batch) -> torch.Tensor:
    """The detector's own loss."""
    del batch
    return signals.output.float()


def schemes() -> tuple[Offline, Offline]:
    """The recipe's scheme, and its control."""
    recipe = load("bccd-detector")
    assert recipe.teacher is not None
    torch.manual_seed(0)
    teacher = faster_rcnn(3, **recipe.teacher.arguments)
    student, control = (faster_rcnn(3, **recipe.student.arguments) for _ in range(2))
    given = batch_of(torch.Generator().manual_seed(0))
    inputs = {role: {"images": given.input(role)["images"]} for role in ("student", "teacher")}  # type: ignore[index]
    example = Batch(inputs, given.target, None, given.index)
    scheme = Offline(student, teacher, Objective(recipe.distill, supervised), example=example)
    return scheme.train(), scheme.control(control).train()


def main() -> None:
    """Time them in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bf16"])
    options = parser.parse_args()
    scheme, control = schemes()
    precision = choose(options.precision, CPU, scheme.student)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {precision.reason}")
    random = torch.Generator().manual_seed(1)
    rows = [round_of(scheme, control, precision, batch_of(random)) for _ in range(options.rounds + 2)][2:]
    for name, each in zip(("distilling", "plain", "teacher"), zip(*rows, strict=True), strict=True):
        print(f"{name:11}{statistics.median(each) * 1e3:8.0f} ms")
    ratios = sorted(taught / (plain + teacher) for taught, plain, teacher in rows)
    print(
        f"ratio      {statistics.median(ratios):8.3f} (median of {len(ratios)}; quartiles "
        f"{ratios[len(ratios) // 4]:.3f} to {ratios[3 * len(ratios) // 4]:.3f}; goal 1.15)"
    )


def round_of(
    scheme: Offline, control: Offline, precision: Precision, batch: Batch
) -> tuple[float, float, float]:
    """Seconds of a distilling step, of a plain one, and of the teacher's answer to the student's regions."""
    start = time.perf_counter()
    with precision.autocast(CPU):
        step = scheme(batch)
    step.loss.backward()
    taught = time.perf_counter() - start
    start = time.perf_counter()
    with precision.autocast(CPU):
        plain = control(batch)
    plain.loss.backward()
    alone = time.perf_counter() - start
    assert scheme.teacher is not None, "the recipe has a teacher"
    start = time.perf_counter()
    with precision.autocast(CPU):
        scheme.teacher(batch, step.output)
    return taught, alone, time.perf_counter() - start


if __name__ == "__main__":
    main()
