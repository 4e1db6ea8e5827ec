"""A language model learns from what it writes itself, judged token by token by its teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from potstill.batch import Batch, Step
from potstill.schemes.around import Around
from potstill.schemes.offline import Offline

__all__ = ["OnPolicy"]

Sampler = Callable[[nn.Module, Batch, list[int]], Batch]
"""What the student writes after the prompts of a batch; the numbers decide its draws."""


class _Replay(nn.Module):
    """The newest batches that a student wrote, to learn from again; its state is in every checkpoint."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.written = size, 0
        self.kept: list[Batch] = []

    def keep(self, batch: Batch) -> None:
        """Put a batch in the place of the oldest."""
        place = self.written % self.size
        self.kept[place : place + 1] = [batch]
        self.written += 1

    def get_extra_state(self) -> dict[str, Any]:
        """All batches as tensors."""
        names = ("inputs", "where", "index", "view")
        return {
            "written": self.written,
            "kept": [{name: getattr(batch, name) for name in names} for batch in self.kept],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`get_extra_state` gave."""
        self.written = state["written"]
        self.kept = [Batch(target=None, **row) for row in state["kept"]]


class OnPolicy(Around):
    """A share of the batches is written by the student; on them the teacher judges, and labels are silent.

    Whether a batch is the student's own, and what it draws, follows from the seed, the batch's view and its
    first sample alone, so a resumed run goes on exactly.

    Args:
        inner: Teacher, student and objective.
        sample: Lets the student write.
        share: Of the batches that are its own, in [0, 1].
        rise: Share of the run in which that grows from 0.
        replay: How many of the newest own batches are kept; 0 for none.
        reuse: Share of the own batches that are taken from those, once there are any.
        seed: Of all choices and draws.

    Reference:
        Agarwal and others, "On-Policy Distillation of Language Models: Learning from Self-Generated
        Mistakes", 2024, https://arxiv.org/abs/2306.13649

    >>> import torch
    >>> from torch.nn.functional import cross_entropy
    >>> from potstill.matching.objective import Objective
    >>> batch = Batch({"student": torch.randn(8, 4)}, torch.arange(8) % 3, None, torch.arange(8))
    >>> supervised = lambda signals, batch: cross_entropy(signals.output, batch.target, reduction="none")
    >>> inner = Offline(nn.Linear(4, 3), nn.Linear(4, 3), Objective({"kl": {}}, supervised))
    >>> own = lambda student, batch, seed: Batch({"student": torch.randn(5, 4)}, None, None, torch.arange(5))
    >>> always, never = OnPolicy(inner, own, share=1.0), OnPolicy(inner, own, share=0.0)
    >>> sorted(always(batch).parts), sorted(never(batch).parts)
    (['kl'], ['kl', 'labels'])
    """

    def __init__(
        self,
        inner: Offline,
        sample: Sampler,
        *,
        share: float = 0.5,
        rise: float = 0.0,
        replay: int = 0,
        reuse: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__(inner)
        self.share, self.rise, self.reuse, self.seed = share, rise, reuse, seed
        self.sample = sample
        self.parts = nn.ModuleDict(dict(inner.parts.items()))
        self._replay = _Replay(replay) if replay else None
        if self._replay is not None:
            self.parts["replay"] = self._replay  # a part, though no optimiser knows it
        self._written: list[tuple[Batch, Batch | None]] = []

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The student."""
        return self.inner.networks

    def stepped(self, steps: int) -> None:
        """Nothing follows the optimiser's steps."""

    def counts(self, batch: Batch, phase: str = "train") -> dict[str, float]:
        """What each part is divided by; of a batch that is to be the student's own, it is written now."""
        own = self._own(batch, phase)
        self._written = [each for each in self._written if each[0] is not batch] + [(batch, own)]
        if own is None:
            return self.inner.counts(batch, phase)
        return {name: count for name, count in self.inner.counts(own, phase).items() if name != "labels"}

    def forward(self, batch: Batch, phase: str = "train") -> Step:
        """One pass of student and teacher over the batch, or over what the student wrote."""
        self.adopt()
        found = [own for given, own in self._written if given is batch] or [self._own(batch, phase)]
        self._written = [each for each in self._written if each[0] is not batch]
        if found[0] is None:
            step: Step = self.inner(batch, phase)
            return step
        return self.inner.learnt(found[0], self.objective.terms_only())

    def _apply(self, fn: Any, recurse: bool = True) -> OnPolicy:
        """Move or cast the teacher along with the rest."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.inner._apply(fn, recurse)
        return self

    def _own(self, batch: Batch, phase: str) -> Batch | None:
        """What the student wrote, where this batch is to be its own."""
        judged = self.objective.active(self.progress).keys() - {"labels"}
        if phase != "train" or not judged:
            return None
        numbers = [self.seed, batch.view, int(batch.index[0])]
        own, again, which = np.random.default_rng(numbers).random(3)
        if own >= self.share * (min(1.0, self.progress / self.rise) if self.rise else 1.0):
            return None
        if self._replay is None:
            return self.sample(self.student, batch, numbers)
        if self._replay.kept and again < self.reuse:
            return self._replay.kept[int(which * len(self._replay.kept))]
        written = self.sample(self.student, batch, numbers)
        self._replay.keep(written)
        return written
