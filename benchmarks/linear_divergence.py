"""Fused projection and divergence of tokens against public chunked losses and the plain loss, in turns.

    python benchmarks/linear_divergence.py [--words 49152] [--valid 0.5] [--rounds 5] [--threads N]

Forward KL of 1,024 tokens, hidden size 576, float32, gradients of hidden states and head. A line a side:
median seconds, median of the paired ratios over ours, difference of its value from ours, and the peak memory
of a fresh process above what it held before the call. The peers run as their trainers call them on a
processor, and once more on tokens gathered beforehand, which they leave to the caller. Needs ``liger-kernel``
and ``trl``, both installed with ``--no-deps``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from potstill.environment import processor
from potstill.losses.heads import Head, Projected
from potstill.losses.sequence import linear_divergence

TOKENS, WIDTH = 1024, 576
FASTER, SMALLER = 1.5, 1 / 3


class Inputs(NamedTuple):
    """Hidden states, heads and a mask: what every side sees."""

    student: Tensor
    head: Tensor
    teacher: Tensor
    their_head: Tensor
    where: Tensor


def inputs(words: int, valid: float) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(scale)

    scale = 2 / WIDTH**0.5
    where = torch.zeros(TOKENS, dtype=torch.bool)
    where[torch.randperm(TOKENS, generator=generator)[: round(valid * TOKENS)]] = True
    return Inputs(
        normal(TOKENS, WIDTH).requires_grad_(),
        normal(words, WIDTH, scale=scale).requires_grad_(),
        normal(TOKENS, WIDTH),
        normal(words, WIDTH, scale=scale),
        where,
    )


def ours(given: Inputs) -> Tensor:
    teacher = Projected(given.teacher, Head(given.their_head))
    found = linear_divergence(given.student, given.head, teacher, where=given.where)
    return found.loss / given.where.sum()


def plain(given: Inputs) -> Tensor:
    with torch.no_grad():
        theirs = log_softmax(given.teacher @ given.their_head.t(), dim=-1)
    values = kl_div(
        log_softmax(given.student @ given.head.t(), dim=-1), theirs, reduction="none", log_target=True
    )
    return values.sum(dim=-1)[given.where].mean()


def liger(given: Inputs) -> Tensor:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    target = torch.where(given.where, 0, -100)
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
    value: Tensor = loss(given.student, given.head, given.teacher, given.their_head, target)
    return value


def trl(given: Inputs) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    arguments = (given.student, given.head, None, given.teacher, given.their_head, None, 0.0)
    values, _ = ChunkedDivergenceFunction.apply(*arguments)
    return values.masked_fill(~given.where, 0).sum() / given.where.sum()


def gathered(side: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Tensor]:
    def run(given: Inputs) -> Tensor:
        few = given.where
        return side(given._replace(student=given.student[few], teacher=given.teacher[few], where=few[few]))

    return run


SIDES: dict[str, Callable[[Inputs], Tensor]] = {
    "ours": ours,
    "plain": plain,
    "liger": liger,
    "trl": trl,
    "plain, gathered": gathered(plain),
    "liger, gathered": gathered(liger),
    "trl, gathered": gathered(trl),
}


def call(name: str, given: Inputs) -> tuple[float, float]:
    """Seconds of forward and backward, and the value."""
    given.student.grad = given.head.grad = None
    # what else a busy machine does is not in a process's own time, which counts each thread
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    loss = SIDES[name](given)
    loss.backward()
    return clock() - start, float(loss.detach())


def peak() -> float:
    """Most memory this process has held so far, in MB (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def alone(name: str, words: int, valid: float) -> None:
    """Print by how much one call raises the peak of this process."""
    small = Inputs(*(torch.randn(4, 4) for _ in range(4)), torch.ones(4, dtype=torch.bool))
    SIDES[name](
        small._replace(student=small.student.requires_grad_(), head=small.head.requires_grad_())
    ).backward()
    given = inputs(words, valid)
    before = peak()
    call(name, given)
    print(peak() - before)


def memory(name: str, options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--threads", str(options.threads), "--alone", name]
    command += ["--words", str(options.words), "--valid", str(options.valid)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def timed(
    names: Sequence[str], given: Inputs, rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each side in each round, sides in turns, and their values."""
    values = {name: call(name, given)[1] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            seconds[name].append(call(name, given)[0])
    return seconds, values


def main() -> None:
    warnings.simplefilter("ignore")  # the peers' own
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=49152)
    parser.add_argument("--valid", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        alone(options.alone, options.words, options.valid)
        return
    print(
        f"{processor()}, {options.threads} threads, torch {torch.__version__}, {TOKENS} tokens, "
        f"{options.valid:.0%} valid, hidden {WIDTH}, {options.words} words",
        flush=True,
    )
    grown = {} if options.no_memory else {name: memory(name, options) for name in options.sides}
    seconds, values = timed(options.sides, inputs(options.words, options.valid), options.rounds)
    ratios = {}
    for name, times in seconds.items():
        ratios[name] = statistics.median(one / own for one, own in zip(times, seconds["ours"], strict=True))
        print(
            f"{name:16} {statistics.median(times):7.3f} s {ratios[name]:6.2f} times  off "
            f"{abs(values[name] / values['ours'] - 1):.0e} {grown.get(name, float('nan')):7.0f} MB",
            flush=True,
        )
    fastest = min(ratio for name, ratio in ratios.items() if name != "ours" and "gathered" not in name)
    missed = [] if fastest >= FASTER else [f"{fastest:.2f} times the fastest, goal {FASTER}"]
    if grown and grown["ours"] > SMALLER * grown["plain"]:
        missed.append(f"{grown['ours'] / grown['plain']:.2f} of the plain loss's memory, goal {SMALLER:.2f}")
    if missed:
        sys.exit(f"goals missed: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
