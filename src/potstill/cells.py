"""One cell of a run: one arm trained with one seed, once, however often the run is interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill import distributed
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.experiment import ARMS, Arm, Experiment
from potstill.files import read_json, write_json
from potstill.folder import RunFolder
from potstill.metrics.quality import shown
from potstill.models.weights import load_weights, save_weights
from potstill.train import Trained, train
from potstill.train.observe import Observer, make_observer
from potstill.train.validation import TOGETHER

__all__ = ["Cell", "Finished", "observer_of", "train_cell", "train_cells", "train_told"]

Which = Literal["last", "best"]


@dataclass(frozen=True)
class Cell:
    """One arm and the seed it is trained with."""

    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """``student-0``: also the name of its folder."""
        return f"{self.arm}-{self.seed}"


@dataclass(frozen=True)
class Finished:
    """A trained cell, as its folder holds it.

    Attributes:
        cell: Which arm and seed.
        folder: Holds ``last.safetensors``, ``best.safetensors`` and ``trained.json``.
        history: One row an epoch: ``epoch``, ``step``, ``accuracy``, ``loss``.
        best_epoch: Epoch with the best validation metric, counted from 1.
        steps: Optimiser steps taken.
        seconds: Time spent in training steps.
        samples_per_second: Training samples over that time.
        weights: Those of terms at ``auto``, as they were chosen.
        networks: Names of all networks, where there are several; the folder holds ``NAME.safetensors``.
        chosen: Which network is the student.
        aids: Names of what it learnt with and may be of use again, such as a discriminator; kept likewise.
    """

    cell: Cell
    folder: Path
    history: list[dict[str, float]]
    best_epoch: int
    steps: int
    seconds: float
    samples_per_second: float
    weights: dict[str, float] = field(default_factory=dict)
    networks: list[str] = field(default_factory=list)
    chosen: str = "student"
    aids: list[str] = field(default_factory=list)

    @property
    def last_is_best(self) -> bool:
        """Whether the last weights are those of the best epoch."""
        return 0 < self.best_epoch == len(self.history) and self.history[-1]["step"] == self.steps

    def load(self, model: nn.Module, which: Which) -> nn.Module:
        """``model`` with the weights of the last or the best epoch, in eval mode."""
        load_weights(model, self.folder / f"{which}.safetensors", f"{self.cell.name}/{which}")
        return model.eval()


def train_cell(
    experiment: Experiment, cell: Cell, folder: RunFolder, observer: Observer, *, resume: bool
) -> Finished | None:
    """Train one cell, go on with it, or find it finished.

    Returns:
        The finished cell, or ``None`` if the user interrupted it (its checkpoint is saved).

    Raises:
        UserError: If the loss is not finite, a loader's worker died, or the disk is full.
    """
    place = folder.cell(cell.name)
    if resume and (place / "trained.json").is_file():
        return _read(cell, place)
    loader, prepare = experiment.training(cell.seed, cell.arm)
    validation = experiment.evaluation(experiment.splits.validation)
    if experiment.shelf is not None:
        experiment.shelf.writing = True
    scheme = experiment.scheme(cell.arm, cell.seed)

    def evaluate(networks: Mapping[str, nn.Module]) -> dict[str, dict[str, float]]:
        return _evaluated(experiment, networks, validation)

    trained = train(
        scheme,
        loader,
        prepare,
        experiment.recipe.train,
        precision=experiment.precision,
        device=experiment.device,
        folder=place,
        observer=observer,
        evaluate=evaluate,
        metric=experiment.task.metric,
        higher=experiment.task.higher_is_better,
        resume=resume,
        seed=cell.seed,
    )
    if trained.interrupted:
        return None
    if distributed.is_main():
        _write(experiment, cell.arm, trained, place)
    distributed.barrier()
    return _read(cell, place)


def train_cells(
    experiment: Experiment, folder: RunFolder, *, resume: bool, control: bool, echo: Callable[[str], None]
) -> list[Finished] | None:
    """Train all cells of a run, seed by seed so that an interrupted one has whole pairs.

    Returns:
        What is finished, or ``None`` if the user interrupted it.
    """
    recipe = experiment.recipe
    plan = [
        Cell(arm, recipe.seed + number)
        for number in range(recipe.seeds)
        for arm in ARMS
        if control or arm == "student"
    ]
    finished = []
    for position, cell in enumerate(plan, start=1):
        title = f"{cell.name} ({position}/{len(plan)})"
        done = train_told(experiment, cell, folder, title, resume=resume, echo=echo)
        if done is None:
            return None
        finished.append(done)
    return finished


def train_told(
    experiment: Experiment,
    cell: Cell,
    folder: RunFolder,
    title: str,
    *,
    resume: bool,
    echo: Callable[[str], None],
) -> Finished | None:
    """One cell, with its bar and its line of text; ``None`` if interrupted."""
    observer = observer_of(experiment, folder, cell.arm, cell.seed, title)
    done = train_cell(experiment, cell, folder, observer, resume=resume)
    if done is None:
        return None
    row = done.history[-1] if done.history else {}
    metric = experiment.task.metric
    reached = shown(metric, row.get(metric, float("nan")))
    echo(
        f"{title}: {reached} on validation after {done.steps} steps, "
        f"{done.seconds:.0f} s, {done.samples_per_second:.3g} samples/s"
    )
    return done


def observer_of(experiment: Experiment, folder: RunFolder, arm: str, seed: int, title: str) -> Observer:
    """What a training tells, on screen and in the files of its run."""
    return make_observer(
        folder.metrics,
        arm=arm,
        seed=seed,
        title=title,
        tensorboard=folder.path / "tensorboard" if experiment.recipe.train.tensorboard else None,
        main=distributed.is_main(),
    )


def _evaluated(
    experiment: Experiment, networks: Mapping[str, nn.Module], part: Loader
) -> dict[str, dict[str, float]]:
    """Metrics of each network; of several, also how often two agree, and how good all are together."""
    found_answers = {
        name: experiment.task.predict(network, part, "student") for name, network in networks.items()
    }
    found = {name: experiment.task.score(answers, part) for name, answers in found_answers.items()}
    if len(found) > 1:
        task, answers = experiment.task, [each.numpy() for each in found_answers.values()]
        pairs = list(itertools.combinations(answers, 2))
        found[TOGETHER] = {
            "agreement": sum(task.agreement(*pair) for pair in pairs) / len(pairs),
            "ensemble": task.value(task.joined(answers), part.dataset),
        }
    return found


def _write(experiment: Experiment, arm: Arm, trained: Trained, place: Path) -> None:
    """Weights first, ``trained.json`` last: with it the cell counts as finished."""
    for which, state in (("last", trained.last_state), ("best", trained.best_state)):
        model = experiment.blank(arm)
        model.load_state_dict(_plain(state))
        save_weights(model, place / f"{which}.safetensors", {"epoch": which})
    several = len(trained.networks) > 1
    for name, network in experiment.networks().items() if several else ():
        network.load_state_dict(_plain(trained.networks[name]))
        save_weights(network, place / f"{name}.safetensors", {"network": name})
    for name, aid in trained.aids.items():
        save_weights(aid, place / f"{name}.safetensors", {"network": name})
    row: dict[str, Any] = {
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "steps": trained.steps,
        "seconds": trained.seconds,
        "samples_per_second": trained.samples_per_second,
        "weights": trained.weights,
        "networks": list(trained.networks) if several else [],
        "chosen": trained.chosen,
        "aids": list(trained.aids),
    }
    write_json(place / "trained.json", row)
    for checkpoint in place.glob("step-*.pt"):
        checkpoint.unlink()


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }


def _read(cell: Cell, place: Path) -> Finished:
    try:
        row = read_json(place / "trained.json")
        return Finished(cell=cell, folder=place, **row)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            str(place / "trained.json"), f"expected a finished cell, cannot read it: {error}"
        ) from error
