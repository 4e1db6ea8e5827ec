"""What is trained before the student: modules that learn to paraphrase the teacher, for factor transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from potstill.errors import UserError
from potstill.matching.layers import PlannedPair
from potstill.matching.objective import Objective

__all__ = ["SHARE", "Paraphrasing", "paraphrasing", "refuse_paraphrasers"]

SHARE = 0.1
"""Of the run, for the paraphrasers' own stage at its beginning."""


class Paraphrasing(nn.Module):
    """All paraphrasers of a scheme in one module, so that one optimiser and DDP see them.

    Args:
        paraphrasers: By the keys of the modules that use them.
        sources: The teacher's layer that each of them paraphrases, by key.
    """

    def __init__(self, paraphrasers: nn.ModuleDict, sources: Mapping[str, str]) -> None:
        super().__init__()
        self.paraphrasers = paraphrasers
        self.sources = dict(sources)

    def forward(self, taps: Mapping[str, Tensor], where: Tensor | None) -> Tensor:
        """How badly the teacher's tensors ``taps`` are reconstructed: a value per sample, ``(N,)``."""
        values = []
        for key, paraphraser in self.paraphrasers.items():
            maps = taps[self.sources[key]].detach()
            with torch.autocast(maps.device.type, enabled=False):
                values.append(paraphraser(maps, where=where))
        return torch.stack(values).sum(dim=0)


def paraphrasing(plan: Sequence[PlannedPair], matchers: nn.ModuleDict) -> Paraphrasing | None:
    """The paraphrasers of those ``matchers`` that have one; ``None`` where none has."""
    modules, sources = nn.ModuleDict(), {}
    for pair in plan:
        paraphraser = getattr(matchers[pair.matcher], "paraphraser", None) if pair.matcher else None
        if isinstance(paraphraser, nn.Module):
            modules[pair.matcher], sources[pair.matcher] = paraphraser, pair.teacher
    return Paraphrasing(modules, sources) if sources else None


def refuse_paraphrasers(objective: Objective) -> None:
    """Refuse terms that learn from a teacher before the student does, where the teacher itself changes.

    Raises:
        UserError: At the term.
    """
    for term in objective.terms.values():
        if term.config.loss == "factor_transfer":
            raise UserError(
                term.where, "paraphrases one fixed teacher first; use it with the scheme 'offline'"
            )
