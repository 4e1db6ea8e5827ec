"""Losses against the form that public code broadcasts, forward and backward, timed in turns in one run.

    python benchmarks/losses.py [NAME ...] [--rounds 21] [--threads N]

One line a case: median time of each side, median of the paired ratios (public / potstill) beside its goal,
relative difference of the value from the public form in float64, peak memory of a fresh process that runs
that side once, above what it held before. A new case is a row of ``CASES``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize, smooth_l1_loss

from potstill import losses
from potstill.environment import processor

Inputs = tuple[Tensor, ...]  # one tensor, or two for a loss over two layers
Loss = Callable[[Inputs, Inputs], Tensor]


@dataclass(frozen=True)
class Case:
    """A loss, the same in public form, and where they are compared.

    Attributes:
        name: The loss in ``potstill.losses``.
        public: Public form: ``(student, teacher) -> 0-d``; ``None`` where it would not fit in memory.
        shapes: Shape of each tensor of one net.
        goal: Least ratio of public time over ours.
        most: Most memory, in MB.
    """

    name: str
    public: Loss | None
    shapes: tuple[tuple[int, ...], ...]
    goal: float = 1.0
    most: float | None = None

    @property
    def title(self) -> str:
        """Name and shapes."""
        return f"{self.name} {' '.join('x'.join(map(str, shape)) for shape in self.shapes)}"

    def ours(self, student: Inputs, teacher: Inputs) -> Tensor:
        """The loss of this package, averaged over the batch where it gives a value a sample."""
        loss = getattr(losses, self.name)
        pair = (student, teacher) if len(self.shapes) > 1 else (student[0], teacher[0])
        value: Tensor = loss(*pair).mean()
        return value

    def inputs(self) -> tuple[Inputs, Inputs]:
        """What both sides see."""
        generator = torch.Generator().manual_seed(0)
        student, teacher = (
            tuple(torch.randn(shape, generator=generator) for shape in self.shapes) for _ in range(2)
        )
        return tuple(tensor.requires_grad_() for tensor in student), teacher


def distances(rows: Tensor) -> Tensor:
    squares = rows.pow(2).sum(dim=1)
    result = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * (rows @ rows.t())).clamp(min=1e-12).sqrt()
    result = result.clone()
    result[range(len(rows)), range(len(rows))] = 0
    return result


def rkd_distance(student: Inputs, teacher: Inputs) -> Tensor:
    with torch.no_grad():
        theirs = distances(teacher[0])
        theirs = theirs / theirs[theirs > 0].mean()
    ours = distances(student[0])
    return smooth_l1_loss(ours / ours[ours > 0].mean(), theirs)


def angles(rows: Tensor) -> Tensor:
    arms = normalize(rows.unsqueeze(0) - rows.unsqueeze(1), p=2, dim=2)  # (N, N, C)
    return torch.bmm(arms, arms.transpose(1, 2)).view(-1)


def rkd_angle(student: Inputs, teacher: Inputs) -> Tensor:
    with torch.no_grad():
        theirs = angles(teacher[0])
    return smooth_l1_loss(angles(student[0]), theirs)


def similarities(maps: Tensor) -> Tensor:
    rows = maps.view(maps.shape[0], -1)
    return normalize(torch.mm(rows, rows.t()))


def similarity_preserving(student: Inputs, teacher: Inputs) -> Tensor:
    difference = similarities(teacher[0]) - similarities(student[0])
    return (difference * difference).view(-1, 1).sum(0) / difference.shape[0] ** 2


def neighbours(rows: Tensor) -> Tensor:
    rows = rows / (torch.sqrt(torch.sum(rows**2, dim=1, keepdim=True)) + 1e-7)
    rows[rows != rows] = 0
    kernel = (torch.mm(rows, rows.transpose(0, 1)) + 1.0) / 2.0
    return kernel / torch.sum(kernel, dim=1, keepdim=True)


def probabilistic_transfer(student: Inputs, teacher: Inputs) -> Tensor:
    ours, theirs = neighbours(student[0]), neighbours(teacher[0])
    return torch.mean(theirs * torch.log((theirs + 1e-7) / (ours + 1e-7)))


def kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first.unsqueeze(1) * second.unsqueeze(2)).sum(-1).pow(2).mean()  # (N, C, C, HW) inside


def neuron_selectivity(student: Inputs, teacher: Inputs) -> Tensor:
    ours, theirs = (normalize(maps.flatten(2), dim=2) for maps in (student[0], teacher[0]))
    return kernel(theirs, theirs).detach() + kernel(ours, ours) - 2 * kernel(ours, theirs)


def flow(maps: Inputs) -> Tensor:
    first, second = (layer.flatten(2) for layer in maps)
    return (first.unsqueeze(2) * second.unsqueeze(1)).mean(-1)  # (N, C, C, HW) inside


def fsp(student: Inputs, teacher: Inputs) -> Tensor:
    return (flow(student) - flow(teacher)).pow(2).mean()


MAPS = (64, 64, 8, 8)
CASES = [
    Case("rkd_distance", rkd_distance, ((64, 512),)),
    Case("rkd_angle", rkd_angle, ((64, 512),), goal=10),
    Case("rkd_angle", None, ((1024, 512),), most=1500),
    Case("similarity_preserving", similarity_preserving, (MAPS,)),
    Case("probabilistic_transfer", probabilistic_transfer, ((64, 512),)),
    Case("neuron_selectivity", neuron_selectivity, (MAPS,), goal=15),
    Case("fsp", fsp, (MAPS, MAPS), goal=40),
]


def seconds(loss: Loss, student: Inputs, teacher: Inputs) -> float:
    for tensor in student:
        tensor.grad = None
    # what else a busy machine does is not in a process's own time, which counts each thread
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    loss(student, teacher).backward()
    return clock() - start


def measured(case: Case, rounds: int) -> tuple[float, float, float]:
    """Medians of public and own seconds, and of the paired ratios."""
    student, teacher = case.inputs()
    assert case.public is not None
    sides: list[Loss] = [case.public, case.ours]
    pairs = []
    for side in sides * 3:
        seconds(side, student, teacher)
    for number in range(rounds):
        # who goes first alternates, so that neither always runs on the other's warm caches
        order = sides if number % 2 else sides[::-1]
        times = [seconds(side, student, teacher) for side in order]
        pairs.append(tuple(times if number % 2 else times[::-1]))
    public, own = (statistics.median(times) for times in zip(*pairs, strict=True))
    return public, own, statistics.median(one / other for one, other in pairs)


def deviation(case: Case) -> float:
    """Relative difference of our value in float32 from the public form's in float64."""
    student, teacher = case.inputs()
    assert case.public is not None
    exact = float(
        case.public(*(tuple(tensor.detach().double() for tensor in net) for net in (student, teacher)))
    )
    return abs(float(case.ours(student, teacher).detach()) - exact) / exact


def peak() -> float:
    """Most memory this process has held so far, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def memory(case: Case, side: str) -> tuple[float, float]:
    """Peak of one call in a fresh process: MB above what it held before, and seconds."""
    threads = str(torch.get_num_threads())
    command = [sys.executable, __file__, "--threads", threads, "--alone", str(CASES.index(case)), side]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    grown, took = output.split()
    return float(grown), float(took)


def alone(case: Case, side: str) -> None:
    small = torch.randn(4, 4, requires_grad=True)
    (small @ small).sum().backward()  # what the first call of any loss would start
    student, teacher = case.inputs()
    before = peak()
    loss = case.public if side == "public" else case.ours
    assert loss is not None
    took = seconds(loss, student, teacher)
    print(peak() - before, took)


def show(case: Case, rounds: int) -> bool:
    """Print a case's line; whether it reaches its goals."""
    grown, took = memory(case, "ours")
    reached = case.most is None or grown <= case.most
    limit = "" if case.most is None else f" (goal {case.most:.0f})"
    if case.public is None:
        print(f"{case.title:37} {'':17} {took * 1e3:9.2f} ms {'':35} {grown:6.0f} MB{limit}", flush=True)
        return reached
    public, own, ratio = measured(case, rounds)
    off, broadcast = deviation(case), memory(case, "public")[0]
    print(
        f"{case.title:37} public {public * 1e3:7.2f} ms {own * 1e3:9.2f} ms {ratio:7.2f} times (goal "
        f"{case.goal:2.0f})  off {off:.0e} {grown:6.0f} MB, public {broadcast:.0f} MB{limit}",
        flush=True,
    )
    return reached and ratio >= case.goal and off <= 5e-6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="losses to time (default: all)")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        alone(CASES[int(options.alone[0])], options.alone[1])
        return
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    chosen = [case for case in CASES if not options.names or case.name in options.names]
    missed = [case.title for case in chosen if not show(case, options.rounds)]
    if missed:
        sys.exit(f"goals missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
