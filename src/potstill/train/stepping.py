"""One optimiser step of a scheme: gradients over its batches and all processes, checks, figures, updates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from potstill import distributed
from potstill.batch import Batch
from potstill.errors import UserError
from potstill.train.balance import Balance, Gradients
from potstill.train.contract import Scheme, Watchful
from potstill.train.course import Course
from potstill.train.figures import Figures, Tally
from potstill.train.learners import Learners
from potstill.train.observe import Observer
from potstill.train.precision import Precision
from potstill.train.settings import TrainConfig
from potstill.train.wishes import Wishes, agreed

__all__ = ["Stepper"]


class Stepper:
    """Takes the steps of one training.

    Args:
        scheme: Who teaches whom.
        learners: Its parts and their optimisers.
        course: Where each step is.
        config: The schedule of the learning rate, and how often gradients are measured.
        precision: What forward passes compute in.
        device: Where.
        observer: Hears of weights that are chosen.
        last_good: Says where the last good checkpoint is.

    Attributes:
        figures: What the parts came to since the last row.
        balance: The weights that are chosen by measured gradients.
    """

    def __init__(
        self,
        scheme: Scheme,
        learners: Learners,
        course: Course,
        config: TrainConfig,
        *,
        precision: Precision,
        device: torch.device,
        observer: Observer,
        last_good: Callable[[], str],
    ) -> None:
        self.scheme, self.learners, self.course, self.config = scheme, learners, course, config
        self.precision, self.device = precision, device
        self.observer, self.last_good = observer, last_good
        self.figures = Figures()
        matched = course.place(course.total - 1)
        self.balance = Balance(scheme, config.gradient_norms, matched.steps)

    def take(self, step: int, batches: list[Batch], wishes: Wishes) -> Wishes:
        """Step number ``step``, from 0, in each phase; gives what all processes together wish.

        Raises:
            UserError: If a part of the loss is not finite.
        """
        place = self.course.place(step)
        stage, self.scheme.progress = place.stage, place.progress
        self.learners.set_learning_rate(place.step, place.steps)
        together = wishes
        for phase in stage.phases:
            counts, together = agreed(self._counts(batches, phase), wishes)
            names = self.scheme.trainable(stage.name, phase)
            tally, gradients = Tally(), self.balance.measuring(place.step, counts)
            for number, batch in enumerate(batches):
                with self.learners.synchronised(names, last=number == len(batches) - 1):
                    self._backward(batch, phase, counts, tally, gradients)
            self._count(step, tally, counts, gradients)
            self.learners.update(names)
        self.scheme.stepped(place.step + 1)
        self.learners.update_averages()
        return together

    def _counts(self, batches: list[Batch], phase: str) -> dict[str, float]:
        """What each part is divided by, over all batches of the step of this process."""
        counts: dict[str, float] = {}
        for batch in batches:
            for name, count in self.scheme.counts(batch, phase).items():
                counts[name] = counts.get(name, 0.0) + count
        return counts

    def _backward(
        self, batch: Batch, phase: str, counts: Mapping[str, float], tally: Tally, gradients: Gradients | None
    ) -> None:
        """Gradients of one batch, counted in ``tally`` and, where they are measured, in ``gradients``."""
        with self.precision.autocast(self.device):
            step = self.scheme(batch, phase)
        loss = step.loss_over(counts) * distributed.world_size()  # DDP takes the mean over processes
        if gradients is not None:
            gradients.add(step.parts, counts)
        loss.backward()  # type: ignore[no-untyped-call]
        tally.add(step.parts, loss)

    def _count(
        self, step: int, tally: Tally, counts: Mapping[str, float], gradients: Gradients | None
    ) -> None:
        """Check a step's parts over all processes, and count them and their gradients."""
        joint = tally.joint()
        bad = [name for name, total in joint.items() if not math.isfinite(total) and "/" not in name]
        if bad:
            named = ", ".join(filter(None, bad)) or "the sum of the parts"
            raise UserError(
                "train",
                f"the loss is not finite at step {step + 1} of {self.course.total}: {named}; "
                f"{self.last_good()}; a lower train.learning_rate or train.clip usually helps",
            )
        self.figures.add(joint, tally.weights, counts)
        if isinstance(self.scheme, Watchful):
            means = {name: joint[name] / max(counts[name], 1.0) for name in tally.weights}
            for line in self.scheme.notices(means):
                self.observer.say(f"step {step + 1}: {line}")
        if gradients is not None:
            norms = gradients.norms()
            self.figures.add_norms(norms, tally.weights)
            for row in self.balance.take(self.course.place(step).step, norms, self.observer.say):
                self.observer.log({"step": step + 1, "epoch": self.course.epoch(step + 1), **row})

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"figures": self.figures.state(), "balance": self.balance.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.figures.restore(state["figures"])
        self.balance.restore(state["balance"])
