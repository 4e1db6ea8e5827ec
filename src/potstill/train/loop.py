"""The training loop: any scheme, its stages one after the other, its phases within each step.

Where a run stands is a pure function of the step number: the epoch, the batches, the views and the
learning rate all follow from it, so a resumed run goes on exactly. What processes must agree on (a wish to
stop, a checkpoint that is due, a loss that is not finite) travels with sums that they exchange anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill import distributed
from potstill.batch import Batch
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.measure import Stopwatch
from potstill.train.balance import Balance, Gradients
from potstill.train.contract import Scheme, State, Trained
from potstill.train.course import Course, Prepare, total_steps
from potstill.train.figures import Figures, Tally
from potstill.train.interrupt import Interrupt, watch_interrupts
from potstill.train.learners import Learners
from potstill.train.observe import Observer
from potstill.train.optimise import learning_rate
from potstill.train.precision import Precision
from potstill.train.settings import TrainConfig
from potstill.train.state import Checkpoints, random_state, restore_random_state, seed_everything

__all__ = ["Training", "Wishes", "total_steps", "train"]

CHECKPOINT_SECONDS = 60.0

Evaluate = Callable[[nn.Module], Mapping[str, float]]


def train(
    scheme: Scheme,
    loader: Loader,
    prepare: Prepare,
    config: TrainConfig,
    *,
    precision: Precision,
    device: torch.device,
    folder: Path,
    observer: Observer,
    evaluate: Evaluate,
    metric: str,
    resume: bool,
    seed: int,
) -> Trained:
    """Train a scheme to its end, or until the user interrupts.

    Args:
        scheme: Who teaches whom; its parts are wrapped in DDP where there are several processes.
        loader: The training batches.
        prepare: Makes a batch of ``(images, labels, index, view)``.
        config: Length, optimiser, schedule.
        precision: What forward passes compute in.
        device: Where.
        folder: For the checkpoints.
        observer: Who is told.
        evaluate: Validation metrics of the student, of which a higher ``metric`` is better.
        metric: Which of them decides the best epoch.
        resume: Go on from the newest whole checkpoint in ``folder``; without one, start anew.
        seed: Of everything random in the networks.

    Raises:
        UserError: If the loss or the weights are not finite (step, part and last good checkpoint are
            named), a worker dies, a checkpoint cannot be written, or ``folder`` holds checkpoints of
            another training and ``resume`` is off.
    """
    seed_everything(seed)
    training = Training(
        scheme,
        loader,
        prepare,
        config,
        precision=precision,
        device=device,
        folder=folder,
        observer=observer,
        evaluate=evaluate,
        metric=metric,
    )
    try:
        if resume:
            training.restore()
        else:
            training.checkpoints.refuse_others()
        with watch_interrupts() as interrupt:
            training.run(interrupt)
    finally:
        observer.finish()
    return training.result()


@dataclass(frozen=True)
class Wishes:
    """What any process may ask for and all then do.

    Attributes:
        stop: End the training after this step.
        save: Write a checkpoint after this step.
    """

    stop: bool = False
    save: bool = False


class Training:
    """The state of one training and its single steps; :func:`train` says what the arguments are."""

    def __init__(
        self,
        scheme: Scheme,
        loader: Loader,
        prepare: Prepare,
        config: TrainConfig,
        *,
        precision: Precision,
        device: torch.device,
        folder: Path,
        observer: Observer,
        evaluate: Evaluate,
        metric: str,
    ) -> None:
        self.scheme, self.prepare, self.config = scheme, prepare, config
        self.precision, self.device, self.observer = precision, device, observer
        self.evaluate, self.metric = evaluate, metric
        self.checkpoints = Checkpoints(folder)
        self.course = Course(loader, config)
        self.learners = Learners(scheme, config)
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best: tuple[float, int, State] | None = None
        self.stopped_early = self.interrupted = False
        self.balance = Balance(scheme, config.gradient_norms, self.course.total)
        self.figures = Figures()
        self._since_saved = Stopwatch()

    # The course -----------------------------------------------------------------------------------

    def run(self, interrupt: Interrupt) -> None:
        """All steps that are left."""
        self.observer.start(self.step, self.course.total)
        batches = self.course.batches(self.step, self.prepare)
        while self.step < self.course.total and not self.interrupted and not self.stopped_early:
            watch = Stopwatch()
            batch = next(batches)
            late = self._since_saved.seconds > CHECKPOINT_SECONDS
            agreed = self.advance(batch, Wishes(stop=interrupt.asked, save=late))
            self.seconds += watch.seconds
            self.observer.advance(self.step)
            if self.course.is_logged(self.step):
                self.log()
            if self.course.ends_epoch(self.step):
                self._evaluate()
            self.interrupted = agreed.stop
            if self._checkpoint_due(agreed):
                self.save()
        # A wish that came during the last step or its evaluation still stops what comes after.
        asked = distributed.sum_floats({"stop": float(interrupt.asked)})["stop"] > 0
        self.interrupted = self.interrupted or asked

    def advance(self, batches: list[Batch], wishes: Wishes) -> Wishes:
        """One optimiser step of each phase; gives what all processes together wish."""
        stage = self.course.stage(self.scheme.stages, self.step)
        self.scheme.progress = self.step / self.course.total
        self.learners.set_learning_rate(learning_rate(self.config, self.step, self.course.total))
        agreed = wishes
        for phase in stage.phases:
            counts, agreed = self._counts(batches, phase, wishes)
            names = self.scheme.trainable(stage.name, phase)
            tally, gradients = Tally(), self.balance.measuring(self.step, counts)
            for number, batch in enumerate(batches):
                with self.learners.synchronised(names, last=number == len(batches) - 1):
                    self._backward(batch, phase, counts, tally, gradients)
            self._take(tally, counts, gradients)
            self.learners.update(names)
        self.learners.update_average()
        self.step += 1
        return agreed

    def _counts(self, batches: list[Batch], phase: str, wishes: Wishes) -> tuple[dict[str, float], Wishes]:
        """What each part is divided by, over all batches of the step and all processes; and the wishes."""
        counts: dict[str, float] = {}
        for batch in batches:
            for name, count in self.scheme.counts(batch, phase).items():
                counts[name] = counts.get(name, 0.0) + count
        asked = {"stop": float(wishes.stop), "save": float(wishes.save)}
        joint = distributed.sum_floats({**{f"part {name}": counts[name] for name in counts}, **asked})
        agreed = Wishes(stop=joint["stop"] > 0, save=joint["save"] > 0)
        return {name: joint[f"part {name}"] for name in counts}, agreed

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

    def _take(self, tally: Tally, counts: Mapping[str, float], gradients: Gradients | None) -> None:
        """Check a step's parts over all processes, and count them and their gradients."""
        joint = tally.joint()
        bad = [name for name, total in joint.items() if not math.isfinite(total)]
        if bad:
            named = ", ".join(filter(None, bad)) or "the sum of the parts"
            raise UserError(
                "train",
                f"the loss is not finite at step {self.step + 1} of {self.course.total}: {named}; "
                f"{self._last_good()}; a lower train.learning_rate or train.clip usually helps",
            )
        self.figures.add(joint, tally.weights, counts)
        if gradients is not None:
            norms = gradients.norms()
            self.figures.add_norms(norms, tally.weights)
            self._weigh(norms)

    def _weigh(self, norms: Mapping[str, float]) -> None:
        """Let the norms decide the weights that are due after this step, and tell them."""
        chosen = self.balance.take(self.step, norms)
        for line in chosen.values():
            self.observer.say(line)
        if chosen:
            done = self.step + 1
            weights = {name: self.balance.weights[name] for name in chosen}
            self.observer.log({"step": done, "epoch": self.course.epoch(done), "weights": weights})

    def _last_good(self) -> str:
        paths = self.checkpoints.paths()
        return f"last good checkpoint: {paths[-1]}" if paths else "there is no checkpoint yet"

    # What is told and kept ------------------------------------------------------------------------

    def log(self) -> None:
        """Tell the observer the mean of each part of the loss since the last call."""
        self.observer.log(
            {
                "step": self.step,
                "epoch": self.course.epoch(self.step),
                "learning_rate": learning_rate(self.config, self.step - 1, self.course.total),
                "samples_per_second": self._rate(),
                **self.figures.row(),
            }
        )

    def _rate(self) -> float:
        return self.course.samples(self.step) / max(self.seconds, 1e-9)

    def _evaluate(self) -> None:
        """Validation metrics, the best epoch so far, and whether patience is at its end."""
        epoch, shown = self.course.epoch(self.step), self.learners.shown
        distributed.broadcast_buffers(shown)
        row = {"epoch": float(epoch), "step": float(self.step), **self.evaluate(shown)}
        self.history.append(row)
        self.observer.log({**row, "step": self.step, "epoch": epoch})
        if self.best is None or row[self.metric] > self.best[0]:
            self.best = (row[self.metric], len(self.history), self.learners.kept())
        patience = self.config.patience
        self.stopped_early = patience is not None and len(self.history) - self.best[1] >= patience

    def _checkpoint_due(self, agreed: Wishes) -> bool:
        if self.step == self.course.total or self.interrupted or self.stopped_early:
            return True
        if self.config.checkpoint_every is not None:
            return self.step % self.config.checkpoint_every == 0
        return agreed.save or self.course.ends_epoch(self.step)

    def save(self) -> None:
        """Write a checkpoint on the main rank."""
        name = self.learners.first_not_finite()
        if name is not None:
            raise UserError("train", f"{name} is not finite after step {self.step}; {self._last_good()}")
        payload = self._payload()
        if distributed.is_main():
            self.checkpoints.save(self.step, payload)
        distributed.barrier()
        self._since_saved = Stopwatch()

    def _payload(self) -> dict[str, Any]:
        return {
            **self.learners.state(),
            "step": self.step,
            "random": distributed.gather_objects(random_state()),
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "stopped_early": self.stopped_early,
            "figures": self.figures.state(),
            "balance": self.balance.state(),
        }

    def restore(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        payload, notes = self.checkpoints.latest()
        for note in notes:
            self.observer.say(note)
        if payload is None:
            return
        self.learners.restore(payload)
        states = payload["random"]  # one a process
        restore_random_state(states[distributed.rank() % len(states)])
        self.step, self.history, self.best = payload["step"], payload["history"], payload["best"]
        self.seconds, self.stopped_early = payload["seconds"], payload["stopped_early"]
        self.figures.restore(payload["figures"])
        self.balance.restore(payload["balance"])

    def result(self) -> Trained:
        """What :func:`train` returns."""
        last = self.learners.kept()
        return Trained(
            last_state=last,
            best_state=last if self.best is None else self.best[2],
            best_epoch=0 if self.best is None else self.best[1],
            history=self.history,
            steps=self.step,
            seconds=self.seconds,
            samples_per_second=self._rate(),
            interrupted=self.interrupted,
            weights=self.balance.weights,
        )
