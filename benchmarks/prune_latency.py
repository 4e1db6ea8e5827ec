"""Does a network that is cut to half its measured time take half of it? Timed again, apart from the choice.

    python benchmarks/prune_latency.py --data DIR [--share 0.5] [--batch 1]

Nothing is trained: magnitude and influence decide which parts go, and the gauge of the loop fits the plan.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from potstill import measure
from potstill.environment import processor
from potstill.models.cifar import resnet56
from potstill.models.weights import load_weights
from potstill.prune import PruneConfig, TargetConfig, find_structure, removed
from potstill.prune.candidates import choose
from potstill.prune.choice import Chooser
from potstill.prune.gauge import Gauge, noise
from potstill.prune.importance import block_scores, unit_scores
from potstill.prune.store import Scores


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = resnet56()
    load_weights(model, options.data / "weights" / "cifar10_resnet56.safetensors", "weights")
    model.eval()
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10

    def losses(network):  # type: ignore[no-untyped-def]
        yield cross_entropy(network(images), labels, reduction="none")

    structure = find_structure(model, images[:2])
    target = TargetConfig(latency=options.share)
    config = PruneConfig(target=target, latency_batch=options.batch, candidates=3, trial_steps=0)
    scores = Scores(
        unit_scores(model, structure.groups, losses, "magnitude"),
        block_scores(model, structure, losses, "influence"),
    )
    example = images[: options.batch]
    whole, apart = noise(model, example)
    print(f"{processor()}, {torch.get_num_threads()} thread(s), batch {options.batch}")
    print(f"original {whole:.2f} ms; the same network timed twice in turns differs by {apart:.1%}")
    gauge = Gauge.of(target, model, example, lambda _: structure.blocks)
    chooser = Chooser(model, structure, scores, gauge, config)
    for one in choose(chooser, target.absolute(gauge.whole), losses, None):
        small = removed(model, one.plan, structure).eval()
        again = measure.latency({"whole": (model, example), "small": (small, example)}, runs=100)
        ratio = again["small"].median_ms / again["whole"].median_ms
        print(
            f"{len(one.plan.blocks):2} blocks, {sum(map(len, one.plan.units.values())):4} channels gone: "
            f"predicted {gauge.predicted(small) / gauge.whole:.3f}, measured in the choice "
            f"{one.cost / gauge.whole:.3f}, timed again {ratio:.3f} (target {options.share:g}), "
            f"MACs {measure.macs(small, images[:1]) / measure.macs(model, images[:1]):.3f}"
        )


if __name__ == "__main__":
    main()
