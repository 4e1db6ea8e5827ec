"""What schemes cost over plain training of the same networks, timed in turns in one run.

    python benchmarks/schemes.py [--rounds 15] [--threads 2] [--network resnet20]

Mutual learning: a step of k peers over the sum of the peers' own steps (goal 1.15; public code makes k^2
forward passes). Early exits of ResNet-56: a joint training step over the plain step of the network alone
(goal 1.35). Forward, backward and optimiser at batch 128 of 32x32 images; CPU time of the process, which does
not count what other programs take, at the given number of threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.batch import Batch, Signals
from potstill.environment import processor
from potstill.matching.objective import Objective
from potstill.measure import parameters
from potstill.models import cifar
from potstill.models.exits import WithExits
from potstill.schemes import DeepSupervision, Mutual, Offline
from potstill.train.memory import keep_freed_memory
from potstill.train.precision import Precision, choose

BATCH = 128
MUTUAL = {"labels": {"weight": 1.0}, "kl": {"weight": 1.0, "temperature": 1.0}}
EXITS = {
    "labels": {"weight": 0.7},
    "kl": {"weight": 0.3 / 9, "temperature": 3.0},
    "feature_mse": {"weight": 0.004},
}
Step = Callable[[], None]


def batch() -> Batch:
    images = torch.randn(BATCH, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    return Batch({"student": images}, torch.randint(0, 10, (BATCH,)), None, torch.arange(BATCH))


def supervised(signals: Signals, given: Batch) -> Tensor:
    assert given.target is not None
    return cross_entropy(signals.output.float(), given.target, reduction="none")


def step_of(scheme: nn.Module, given: Batch, precision: Precision) -> Step:
    """One optimiser step of every part of a scheme."""
    scheme.train()
    parts = list(scheme.trainable("train", "train").values())
    optimizers = [torch.optim.SGD(part.parameters(), lr=1e-3, momentum=0.9, fused=True) for part in parts]

    def step() -> None:
        with precision.autocast(torch.device("cpu")):
            done = scheme(given, "train")
        done.loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def alone(model: nn.Module) -> Offline:
    return Offline(model, None, Objective({}, supervised, 1.0))


def ratios(ours: Step, plain: Sequence[Step], rounds: int) -> list[float]:
    """CPU time of one over the sum of the others, round by round."""
    found = []
    for number in range(rounds + 1):
        times = []
        for step in (ours, *plain) if number % 2 else (*plain, ours):
            begin = time.process_time()
            step()
            times.append(time.process_time() - begin)
        mine = times[0] if number % 2 else times[-1]
        if number:
            found.append(mine / (sum(times) - mine))
    return found


def tell(name: str, values: Sequence[float], goal: float) -> None:
    low, middle, high = statistics.quantiles(values, n=4)
    verdict = "met" if middle <= goal else "missed"
    print(f"{name:42}{middle:6.3f}  quartiles {low:.3f} to {high:.3f}  goal {goal} {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--network", default="resnet20")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    keep_freed_memory()  # as the training loop does
    make = lambda: getattr(cifar, options.network)().to(memory_format=torch.channels_last)  # noqa: E731
    given = batch()
    precision = choose("auto", torch.device("cpu"), make())
    print(f"{processor()}, {options.threads} thread(s), torch {torch.__version__}, {precision.name}")
    for count in (2, 3):
        peers = [make() for _ in range(count)]
        mutual = Mutual(peers, Objective(MUTUAL, supervised))
        steps = [step_of(alone(make()), given, precision) for _ in range(count)]
        tell(
            f"mutual, {count} peers, over their own steps",
            ratios(step_of(mutual, given, precision), steps, options.rounds),
            1.15,
        )
    deep = lambda: cifar.resnet56().to(memory_format=torch.channels_last)  # noqa: E731
    plain = deep()
    network = WithExits(deep(), "auto", given.input("student")[:2]).to(memory_format=torch.channels_last)
    joint = DeepSupervision(network, Objective(EXITS, supervised))
    more = parameters(network) / parameters(plain) - 1
    print(f"exits {', '.join(network.paths)}: {more:.1%} more parameters (goal 15 %)")
    taken = ratios(
        step_of(joint, given, precision), [step_of(alone(plain), given, precision)], options.rounds
    )
    tell("joint step with exits, over the plain step", taken, 1.35)


if __name__ == "__main__":
    main()
