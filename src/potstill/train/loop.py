"""The training loop: any scheme, its stages one after the other, its phases within each step.

Where a run stands is a pure function of the step number: the epoch, the batches, the views and the
learning rate all follow from it, so a resumed run goes on exactly.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from potstill import distributed
from potstill.batch import Batch, Share
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.measure import Stopwatch
from potstill.schemes.stages import Stage
from potstill.train.contract import Scheme, State, Trained
from potstill.train.interrupt import Interrupt, watch_interrupts
from potstill.train.observe import Observer
from potstill.train.optimise import clip_gradients, learning_rate, make_optimizer, set_learning_rate
from potstill.train.precision import Precision
from potstill.train.settings import TrainConfig
from potstill.train.state import Checkpoints, random_state, restore_random_state

__all__ = ["Training", "steps_per_epoch", "total_steps", "train"]

LOGGED_ROWS = 200
CHECKPOINT_SECONDS = 60.0

Prepare = Callable[[Tensor, Tensor, Tensor, int], Batch]
Evaluate = Callable[[nn.Module], Mapping[str, float]]


def steps_per_epoch(loader: Loader, config: TrainConfig) -> int:
    """Optimiser steps of one epoch; the last may have fewer batches to accumulate."""
    return math.ceil(loader.batches_per_epoch / config.accumulate)


def total_steps(loader: Loader, config: TrainConfig) -> int:
    """Optimiser steps of a training."""
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * steps_per_epoch(loader, config)))


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
        evaluate: Validation metrics of the student, higher ``metric`` is better.
        metric: Which of them decides the best epoch.
        resume: Go on from the newest whole checkpoint in ``folder``.
        seed: Of everything random in the networks.

    Raises:
        UserError: If the loss or the weights are not finite (step, part and last good checkpoint are
            named), a worker dies, or a checkpoint cannot be written.
    """
    torch.manual_seed(seed)
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
    if resume:
        training.restore()
    try:
        with watch_interrupts() as interrupt:
            training.run(interrupt)
    finally:
        observer.finish()
    return training.result()


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
        self.scheme, self.loader, self.prepare, self.config = scheme, loader, prepare, config
        self.precision, self.device, self.observer = precision, device, observer
        self.evaluate, self.metric = evaluate, metric
        self.checkpoints = Checkpoints(folder)
        self.epoch_steps, self.total = steps_per_epoch(loader, config), total_steps(loader, config)
        self.log_every = max(1, self.total // LOGGED_ROWS)
        self.average = self._averaged()
        self.optimizers = self._optimizers()
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.best: tuple[float, int, State] | None = None
        self.stopped_early = self.interrupted = False
        self._sums: dict[str, tuple[Tensor, float]] = {}
        self._since_saved = Stopwatch()
        self._wrap()

    # What is trained ------------------------------------------------------------------------------

    def _averaged(self) -> AveragedModel | None:
        if self.config.ema is None:
            return None
        rule = get_ema_multi_avg_fn(self.config.ema)  # type: ignore[no-untyped-call]
        return AveragedModel(self.scheme.student, multi_avg_fn=rule, use_buffers=True)

    def _optimizers(self) -> dict[str, Optimizer]:
        modules: dict[str, nn.Module] = {}
        for stage in self.scheme.stages:
            for phase in stage.phases:
                modules.update(self.scheme.trainable(stage.name, phase))
        return {name: make_optimizer(module, self.config) for name, module in modules.items()}

    def _wrap(self) -> None:
        for name in self.optimizers:
            if self.config.compile:
                self.scheme.parts[name].compile()
            if distributed.world_size() > 1:
                self.scheme.parts[name] = DistributedDataParallel(self.scheme.parts[name])

    def _bare(self, name: str) -> nn.Module:
        part = self.scheme.parts[name]
        return part.module if isinstance(part, DistributedDataParallel) else part

    @property
    def shown(self) -> nn.Module:
        """The network that is evaluated and kept."""
        return self.scheme.student if self.average is None else self.average.module

    # The course -----------------------------------------------------------------------------------

    def run(self, interrupt: Interrupt) -> None:
        """All steps that are left."""
        self.observer.start(self.step, self.total)
        batches = self.batches()
        while self.step < self.total and not self.interrupted and not self.stopped_early:
            watch = Stopwatch()
            stop = self.advance(next(batches), asked=interrupt.asked)
            self.seconds += watch.seconds
            self.observer.advance(self.step)
            if self.step % self.log_every == 0 or self.step == self.total:
                self.log()
            at_epoch = self.step % self.epoch_steps == 0 or self.step == self.total
            if at_epoch:
                self._evaluate()
            self.interrupted = stop and self.step < self.total
            if self._checkpoint_due(at_epoch):
                self.save()

    def batches(self) -> Iterator[list[Batch]]:
        """The batches of each step that is left, grouped for accumulation."""
        size = self.config.accumulate
        while True:
            epoch, position = divmod(self.step, self.epoch_steps)
            group: list[Batch] = []
            left = self.loader.batches_per_epoch - position * size
            for images, labels, index in self.loader.epoch(epoch, position * size):
                group.append(self.prepare(images, labels, index, epoch))
                left -= 1
                if len(group) == size or left == 0:
                    yield group
                    group = []

    def _stage(self) -> Stage:
        """The stage that this step belongs to."""
        done, progress = 0.0, self.step / self.total
        for stage in self.scheme.stages:
            done += stage.share
            if progress < done:
                return stage
        return self.scheme.stages[-1]

    def advance(self, batches: list[Batch], *, asked: bool) -> bool:
        """One optimiser step of each phase; whether any process was asked to stop."""
        stage, stop = self._stage(), asked
        self.scheme.progress = self.step / self.total
        set_learning_rate(self.optimizers.values(), learning_rate(self.config, self.step, self.total))
        for phase in stage.phases:
            counts: dict[str, float] = {"": float(asked)}  # the empty name carries the wish to stop
            for batch in batches:
                for name, count in self.scheme.counts(batch, phase).items():
                    counts[name] = counts.get(name, 0.0) + count
            counts = distributed.sum_floats(counts)
            stop = counts.pop("") > 0
            names = self.scheme.trainable(stage.name, phase)
            for number, batch in enumerate(batches):
                with self._synchronised(names, last=number == len(batches) - 1):
                    self._backward(batch, phase, counts)
            clip_gradients((self._bare(name) for name in names), self.config.clip)
            for name in names:
                self.optimizers[name].step()
                self.optimizers[name].zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.scheme.student)
        self.step += 1
        return stop

    @contextlib.contextmanager
    def _synchronised(self, names: Mapping[str, nn.Module], *, last: bool) -> Iterator[None]:
        """Let DDP exchange gradients after the last batch of a step only."""
        with contextlib.ExitStack() as stack:
            for name in names:
                part = self.scheme.parts[name]
                if isinstance(part, DistributedDataParallel) and not last:
                    stack.enter_context(part.no_sync())
            yield

    def _backward(self, batch: Batch, phase: str, counts: Mapping[str, float]) -> None:
        with self.precision.autocast(self.device):
            step = self.scheme(batch, phase)
        loss = step.loss_over(counts) * distributed.world_size()  # DDP takes the mean over processes
        if not math.isfinite(loss.item()):
            self._stop_not_finite(step.parts)
        loss.backward()  # type: ignore[no-untyped-call]
        for name, part in step.parts.items():
            total, count = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (part.total.detach() + total, part.count + count)

    def _stop_not_finite(self, parts: Mapping[str, Share]) -> None:
        bad = [name for name, part in parts.items() if not math.isfinite(part.total.item())]
        named = ", ".join(bad) or "the sum of the parts"
        raise UserError(
            "train",
            f"the loss is not finite at step {self.step + 1} of {self.total}: {named}; {self._last_good()}; "
            "a lower train.learning_rate or train.clip usually helps",
        )

    def _last_good(self) -> str:
        paths = self.checkpoints.paths()
        return f"last good checkpoint: {paths[-1]}" if paths else "there is no checkpoint yet"

    # What is told and kept ------------------------------------------------------------------------

    def log(self) -> None:
        """Tell the observer the mean of each part of the loss since the last call."""
        sums = {name: float(total) for name, (total, _) in self._sums.items()}
        counts = {f"count {name}": count for name, (_, count) in self._sums.items()}
        both = distributed.sum_floats({**sums, **counts})
        self._sums = {}
        self.observer.log(
            {
                "step": self.step,
                "epoch": (self.step - 1) // self.epoch_steps + 1,
                "learning_rate": learning_rate(self.config, self.step - 1, self.total),
                "samples_per_second": self._rate(),
                "parts": {name: both[name] / max(both[f"count {name}"], 1.0) for name in sums},
            }
        )

    def _rate(self) -> float:
        samples = self.step * self.loader.batches_per_epoch * self.loader.batch_size / self.epoch_steps
        return samples / max(self.seconds, 1e-9)

    def _evaluate(self) -> None:
        """Validation metrics, the best epoch so far, and whether patience is at its end."""
        epoch = (self.step - 1) // self.epoch_steps + 1
        if self.history and self.history[-1]["step"] == self.step:
            return
        distributed.broadcast_buffers(self.shown)
        row = {"epoch": float(epoch), "step": float(self.step), **self.evaluate(self.shown)}
        self.history.append(row)
        self.observer.log({**row, "step": self.step, "epoch": epoch})
        if self.best is None or row[self.metric] > self.best[0]:
            self.best = (row[self.metric], len(self.history), _cpu(self.shown.state_dict()))
        patience = self.config.patience
        self.stopped_early = patience is not None and len(self.history) - self.best[1] >= patience

    def _checkpoint_due(self, at_epoch: bool) -> bool:
        if self.step == self.total or self.interrupted or self.stopped_early:
            return True
        if self.config.checkpoint_every is not None:
            return self.step % self.config.checkpoint_every == 0
        return at_epoch or self._since_saved.seconds > CHECKPOINT_SECONDS

    def save(self) -> None:
        """Write a checkpoint on the main rank."""
        self._since_saved = Stopwatch()
        for name, parameter in self.scheme.student.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise UserError("train", f"{name} is not finite after step {self.step}; {self._last_good()}")
        if distributed.is_main():
            self.checkpoints.save(self.step, self._payload())
        distributed.barrier()

    def _payload(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "parts": {name: self._bare(name).state_dict() for name in self.optimizers},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "average": None if self.average is None else self.average.state_dict(),
            "random": random_state(),
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds,
            "stopped_early": self.stopped_early,
            "sums": {name: (total, count) for name, (total, count) in self._sums.items()},
        }

    def restore(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        payload, notes = self.checkpoints.latest()
        for note in notes:
            self.observer.say(note)
        if payload is None:
            return
        for name, optimizer in self.optimizers.items():
            self._bare(name).load_state_dict(payload["parts"][name])
            optimizer.load_state_dict(payload["optimizers"][name])
        if self.average is not None:
            self.average.load_state_dict(payload["average"])
        restore_random_state(payload["random"])
        self.step, self.history, self.best = payload["step"], payload["history"], payload["best"]
        self.seconds, self.stopped_early = payload["seconds"], payload["stopped_early"]
        self._sums = {
            name: (total.to(self.device), count) for name, (total, count) in payload["sums"].items()
        }

    def result(self) -> Trained:
        """What :func:`train` returns."""
        last = _cpu(self.shown.state_dict())
        return Trained(
            last_state=last,
            best_state=last if self.best is None else self.best[2],
            best_epoch=0 if self.best is None else self.best[1],
            history=self.history,
            steps=self.step,
            seconds=self.seconds,
            samples_per_second=self._rate(),
            interrupted=self.interrupted,
        )


def _cpu(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
