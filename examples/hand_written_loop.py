"""Distil in a loop of your own: the scheme is a module, and ``loss.backward()`` is all it asks of you.

Run it with ``python examples/hand_written_loop.py``; it takes a second or two and needs no data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from potstill.batch import Batch, Signals
from potstill.matching.objective import Objective
from potstill.schemes import Offline


def points(count: int, seed: int) -> Batch:
    """Points on two noisy rings, and which ring each lies on."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.randint(0, 2, (count,), generator=generator)
    angle = 6.2832 * torch.rand(count, generator=generator)
    radius = 1 + ring + 0.3 * torch.randn(count, generator=generator)
    plane = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return Batch({"student": plane}, ring, None, torch.arange(count))


def net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
    )


def labels(signals: Signals, batch: Batch) -> Tensor:
    return cross_entropy(signals.output, batch.target, reduction="none")


def train(scheme: Offline, seed: int, steps: int = 300) -> None:
    # The loop, with nothing of Potstill's training in it.
    optimizer = torch.optim.AdamW(scheme.parameters(), lr=0.01)
    scheme.train()
    for step in range(steps):
        scheme.progress = step / steps
        loss = scheme(points(64, seed + step)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def accuracy(model: nn.Module) -> float:
    test = points(4000, seed=1)
    with torch.no_grad():
        guesses = model.eval()(test.input("student")).argmax(dim=1)
    return float((guesses == test.target).float().mean())


def main() -> None:
    torch.manual_seed(0)
    teacher, student = net(64), net(6)
    train(Offline(teacher, None, Objective({}, labels)), seed=10_000)
    objective = Objective({"kl": {"weight": 0.9, "temperature": 2}, "feature_mse": {"weight": 1}}, labels)
    scheme = Offline(student, teacher, objective, example=points(2, seed=0))
    print(*scheme.objective.describe(), sep="\n")
    train(scheme, seed=50_000)
    print(f"accuracy: teacher {accuracy(teacher):.3f}, student {accuracy(scheme.student):.3f}")


if __name__ == "__main__":
    main()
