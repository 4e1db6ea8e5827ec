"""What processes must agree on before a step: it travels with sums that they exchange anyway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from potstill import distributed

__all__ = ["Wishes", "agreed"]


@dataclass(frozen=True)
class Wishes:
    """What any process may ask for and all then do.

    Attributes:
        stop: End the training after this step.
        save: Write a checkpoint after this step.
    """

    stop: bool = False
    save: bool = False


def agreed(counts: Mapping[str, float], wishes: Wishes) -> tuple[dict[str, float], Wishes]:
    """The sums of ``counts`` over all processes, and what any of them wishes.

    >>> agreed({"kl": 8.0}, Wishes(save=True))
    ({'kl': 8.0}, Wishes(stop=False, save=True))
    """
    asked = {"stop": float(wishes.stop), "save": float(wishes.save)}
    joint = distributed.sum_floats({**{f"part {name}": counts[name] for name in counts}, **asked})
    together = Wishes(stop=joint["stop"] > 0, save=joint["save"] > 0)
    return {name: joint[f"part {name}"] for name in counts}, together
