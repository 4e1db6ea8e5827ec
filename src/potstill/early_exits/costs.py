"""What early exits cost: multiply-adds and time up to each, and a policy timed against the whole network."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from potstill import measure
from potstill.deploy.early_exit import EarlyExit, Left
from potstill.deploy.exit_runtime import Policy
from potstill.models.exits import WithExits
from potstill.models.segments import cut

__all__ = ["Costs", "costs_of", "make_runtime", "time_against_whole", "typical"]

BATCHES = (1, 64)
TIMED_IMAGES = 128
ROUNDS, LONGEST_SECONDS = 7, 20.0
UNREACHED = 2.0  # by a probability: the exit is asked, and nobody leaves


@dataclass(frozen=True)
class Costs:
    """Of one image, up to each exit in order and of the whole network with its exits.

    Attributes:
        macs: Multiply-accumulates.
        latency_ms: Milliseconds at batch 1, never less than up to the exit before.
    """

    macs: tuple[int, ...]
    latency_ms: tuple[float, ...]


class _By(nn.Module):
    """The run-time by another policy: networks that are timed in turns share its segments."""

    def __init__(self, runtime: EarlyExit, policy: Policy) -> None:
        super().__init__()
        self.runtime = runtime
        self.policy = policy

    def forward(self, images: Tensor) -> Left:
        self.runtime.policy = self.policy
        answer: Left = self.runtime(images)
        return answer


class _InBatches(nn.Module):
    """A network that answers to many images, some at a time."""

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = size

    def forward(self, images: Tensor) -> None:
        for batch in torch.split(images, self.size):
            self.network(batch)


def make_runtime(network: WithExits, example: Tensor) -> EarlyExit:
    """A run-time for any policy; where the network cannot be cut, its ``reason`` says why."""
    never = Policy("probability", (math.inf,) * len(network.paths))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the network is computed whole")  # the run tells it itself
        return EarlyExit(network, never, example)


def costs_of(runtime: EarlyExit, image: Tensor) -> Costs:
    """Multiply-accumulates and time up to each exit, all exits before it asked, timed in turns.

    Args:
        runtime: The network with its exits.
        image: One input, ``(1, ...)``.
    """
    count = len(runtime.network.paths)
    places = range(count + 1)
    sides: dict[str, nn.Module] = {}
    for place in places:
        thresholds = (-math.inf if number == place else UNREACHED for number in range(count))
        sides[str(place)] = _By(runtime, Policy("probability", tuple(thresholds)))
    macs = [measure.macs(side, image) for side in sides.values()]
    timed = measure.latency({name: (side, image) for name, side in sides.items()})
    times = itertools.accumulate((timed[name].median_ms for name in sides), max)
    return Costs(tuple(macs), tuple(times))


def typical(taken: NDArray[np.int64], count: int = TIMED_IMAGES) -> NDArray[np.int64]:
    """Positions of samples that leave at each exit in the same shares as all do, in mixed order.

    Args:
        taken: The exit of each sample, ``(N,)``.
        count: How many, at most.

    >>> np.bincount(np.array([0, 1, 1, 1] * 25)[typical(np.array([0, 1, 1, 1] * 25), 8)]).tolist()
    [2, 6]
    """
    order = np.argsort(taken, kind="stable")
    places = np.linspace(0, len(order), min(count, len(order)), endpoint=False).astype(np.int64)
    mixed: NDArray[np.int64] = np.random.default_rng(0).permutation(order[places])
    return mixed


def time_against_whole(
    runtime: EarlyExit, policy: Policy, images: Tensor, batches: Sequence[int] = BATCHES
) -> Mapping[str, Any]:
    """Milliseconds a batch by ``policy`` and of the whole network, in turns over the same images.

    Args:
        runtime: The network with its exits.
        policy: When a sample leaves.
        images: What they see, ``(N, ...)``.
        batches: Batch sizes; one that is larger than ``N`` is left out.

    Returns:
        For each size ``early``, ``whole`` (without exits, as it was trained), ``folded`` (the same with batch
        norms folded, as the early one has them), and the ratios ``whole / early`` and ``folded / early``.
    """
    network = runtime.network
    sides: dict[str, nn.Module] = {"early": _By(runtime, policy), "whole": network.model}
    folded = cut(network.model, (), images[:2], quick=True)
    if folded.parts:
        sides["folded"] = folded.parts[0]
    found: dict[str, Any] = {}
    for size in batches:
        count = len(images) // size
        if not count:
            continue
        part = images[: count * size]
        timed = measure.latency(
            {name: (_InBatches(side, size), part) for name, side in sides.items()},
            runs=ROUNDS,
            warmup=1,
            seconds=LONGEST_SECONDS,
        )
        row: dict[str, Any] = {name: _of_one(latency, count) for name, latency in timed.items()}
        early = timed["early"].median_ms
        row |= {f"{name}_over_early": timed[name].median_ms / early for name in sides if name != "early"}
        found[str(size)] = row
    return found


def _of_one(latency: measure.Latency, count: int) -> dict[str, float]:
    """The mean of one batch, where ``count`` were timed together; the spread is that between rounds."""
    row = asdict(latency)
    return {**{key: row[key] / count for key in ("median_ms", "low_ms", "high_ms")}, "runs": row["runs"]}
