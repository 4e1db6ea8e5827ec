"""The training loop: any scheme, its stages one after the other, its phases within each step.

Where a run stands is a pure function of the step number: the epoch, the batches, the views and the
learning rate all follow from it, so a resumed run goes on exactly. What processes must agree on (a wish to
stop, a checkpoint that is due, a loss that is not finite) travels with sums that they exchange anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from potstill import distributed
from potstill.data.loader import Loader
from potstill.errors import UserError, no_memory
from potstill.measure import Stopwatch
from potstill.randomness import random_state, restore_random_state
from potstill.train.contract import Aided, Scheme, State, Trained
from potstill.train.course import Course, Prepare, total_steps
from potstill.train.interrupt import Interrupt, watch_interrupts
from potstill.train.learners import Learners
from potstill.train.memory import keep_freed_memory
from potstill.train.observe import Observer
from potstill.train.optimise import learning_rate
from potstill.train.precision import Precision
from potstill.train.settings import TrainConfig
from potstill.train.state import Checkpoints, seed_everything
from potstill.train.stepping import Stepper
from potstill.train.validation import Evaluate, Validation
from potstill.train.wishes import Wishes, agreed

__all__ = ["Training", "total_steps", "train"]

CHECKPOINT_SECONDS = 60.0
SAVING_SHARE = 0.03
"""Large networks are saved more rarely than once a minute: saving takes at most this share of the time."""


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
    higher: bool = True,
    resume: bool,
    seed: int,
) -> Trained:
    """Train a scheme to its end, or until the user interrupts.

    Args:
        scheme: Who teaches whom; its parts are wrapped in DDP where there are several processes.
        loader: The training batches.
        prepare: Makes a batch of ``(samples, targets, index, view)``.
        config: Length, optimiser, schedule.
        precision: What forward passes compute in.
        device: Where.
        folder: For the checkpoints.
        observer: Who is told.
        evaluate: Validation metrics of networks.
        metric: Which of them decides the best network and epoch.
        higher: Whether a higher ``metric`` is better.
        resume: Go on from the newest whole checkpoint in ``folder``; without one, start anew.
        seed: Of everything random in the networks.

    Raises:
        UserError: If the loss or the weights are not finite (step, part and last good checkpoint are
            named), memory runs out, a worker dies, a checkpoint cannot be written, or ``folder`` holds
            checkpoints of another training and ``resume`` is off; if patience does not fit the scheme's
            stages.
    """
    seed_everything(seed)
    if device.type == "cpu":
        keep_freed_memory()
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
        higher=higher,
    )
    try:
        if resume:
            training.restore()
        else:
            training.checkpoints.refuse_others()
        with watch_interrupts() as interrupt:
            training.run(interrupt)
    except RuntimeError as error:
        if not no_memory(error):
            raise
        raise UserError(
            "train.batch_size",
            "out of memory in a step: lower it, and raise train.accumulate as much, or make samples smaller "
            f"(data.max_length, data.size); {str(error).splitlines()[0][:200]}",
        ) from error
    finally:
        observer.finish()
    return training.result()


class Training:
    """The state of one training; :func:`train` says what the arguments are."""

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
        higher: bool = True,
    ) -> None:
        self.scheme, self.prepare, self.config = scheme, prepare, config
        self.observer = observer
        self.validation = Validation(evaluate, metric, config.patience, higher=higher)
        self.checkpoints = Checkpoints(folder)
        self.course = Course(loader, config, scheme.stages)
        self.learners = Learners(scheme, config)
        self.step = 0
        self.seconds = 0.0
        self.interrupted = False
        self.stepper = Stepper(
            scheme,
            self.learners,
            self.course,
            config,
            precision=precision,
            device=device,
            observer=observer,
            last_good=self._last_good,
        )
        self._since_saved, self._until_due = Stopwatch(), CHECKPOINT_SECONDS

    # The course -----------------------------------------------------------------------------------

    def run(self, interrupt: Interrupt) -> None:
        """All steps that are left."""
        self.observer.start(self.step, self.course.total)
        batches = self.course.batches(self.step, self.prepare)
        while self.step < self.course.total and not self.interrupted and not self.validation.patience_ended:
            watch = Stopwatch()
            if self.course.place(self.step).step == 0:
                self._begin_stage()
            batch = next(batches)
            late = self._since_saved.seconds > self._until_due
            wishes = self.stepper.take(self.step, batch, Wishes(stop=interrupt.asked, save=late))
            self.step += 1
            self.seconds += watch.seconds
            self.observer.advance(self.step)
            if self.course.is_logged(self.step):
                self.log()
            if self.course.ends_epoch(self.step):
                self._evaluate()
            self.interrupted = wishes.stop
            if self._checkpoint_due(wishes):
                self.save()
        # A wish that came during the last step or its evaluation still stops what comes after.
        _, wishes = agreed({}, Wishes(stop=interrupt.asked))
        self.interrupted = self.interrupted or wishes.stop

    def _begin_stage(self) -> None:
        """Enter a stage: what is finished stays as it was selected, averages and best epoch begin anew."""
        if self.step:
            self.learners.settle(*self._selected())
        self.scheme.enter(self.course.place(self.step).stage.name)
        self.learners.begin()
        self.validation.begin()

    def _last_good(self) -> str:
        paths = self.checkpoints.paths()
        return f"last good checkpoint: {paths[-1]}" if paths else "there is no checkpoint yet"

    # What is told and kept ------------------------------------------------------------------------

    def log(self) -> None:
        """Tell the observer the mean of each part of the loss since the last call."""
        place = self.course.place(self.step - 1)
        self.observer.log(
            {
                "step": self.step,
                "epoch": self.course.epoch(self.step),
                "learning_rate": learning_rate(self.config, place.step, place.steps),
                "samples_per_second": self._rate(),
                **self.stepper.figures.row(),
            }
        )

    def _rate(self) -> float:
        return self.course.samples(self.step) / max(self.seconds, 1e-9)

    def _evaluate(self) -> None:
        """Validation metrics, the best epoch so far, and whether patience is at its end."""
        epoch, shown = self.course.epoch(self.step), self.learners.shown
        for network in shown.values():
            distributed.broadcast_buffers(network)
        watched, kept = self.scheme.watched, self.learners.kept
        self.observer.log(self.validation.after(epoch, self.step, shown, watched, kept))

    def _checkpoint_due(self, wishes: Wishes) -> bool:
        if self.step == self.course.total or self.interrupted or self.validation.patience_ended:
            return True
        if self.config.checkpoint_every is not None:
            return self.step % self.config.checkpoint_every == 0
        return wishes.save or self.course.ends_epoch(self.step)

    def save(self) -> None:
        """Write a checkpoint on the main rank."""
        name = self.learners.first_not_finite()
        if name is not None:
            raise UserError("train", f"{name} is not finite after step {self.step}; {self._last_good()}")
        watch = Stopwatch()
        payload = self._payload()
        if distributed.is_main():
            self.checkpoints.save(self.step, payload)
        distributed.barrier()
        self._until_due = max(CHECKPOINT_SECONDS, watch.seconds / SAVING_SHARE)
        self._since_saved = Stopwatch()

    def _payload(self) -> dict[str, Any]:
        return {
            **self.learners.state(),
            "step": self.step,
            "random": distributed.gather_objects(random_state()),
            "seconds": self.seconds,
            "validation": self.validation.state(),
            **self.stepper.state(),
        }

    def restore(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        payload, notes = self.checkpoints.latest()
        for note in notes:
            self.observer.say(note)
        if payload is None:
            return
        self.learners.restore(payload, self.course.place(max(payload["step"] - 1, 0)).stage.name)
        states = payload["random"]  # one a process
        restore_random_state(states[distributed.rank() % len(states)])
        self.step, self.seconds = payload["step"], payload["seconds"]
        self.validation.restore(payload["validation"])
        self.stepper.restore(payload)

    def _last(self) -> tuple[str, State]:
        """The network that was best after the newest epoch, and its weights as they are."""
        name = self.validation.leader(self.scheme.watched)
        return name, self.learners.kept(name)

    def _selected(self) -> tuple[str, State]:
        """The network and the weights that count."""
        last = self._last()
        return self.validation.best(last) if self.config.select == "best" else last

    def result(self) -> Trained:
        """What :func:`train` returns."""
        last, (chosen, selected) = self._last(), self._selected()
        networks = {name: self.learners.kept(name) for name in self.scheme.networks}
        return Trained(
            last_state=last[1],
            best_state=self.validation.best(last)[1],
            networks={**networks, chosen: selected},
            chosen=chosen,
            best_epoch=self.validation.best_epoch,
            history=self.validation.history,
            steps=self.step,
            seconds=self.seconds,
            samples_per_second=self._rate(),
            interrupted=self.interrupted,
            weights=self.stepper.balance.weights,
            aids=self.scheme.aids if isinstance(self.scheme, Aided) else {},
        )
