"""Everything a run needs, loaded and checked before anything is written or trained."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from potstill import distributed
from potstill.answers import Answers, Remembered
from potstill.batch import Batch
from potstill.cache import KnownTeacher, Shelf
from potstill.config import Recipe
from potstill.data import SampleSet, Splits
from potstill.data.loader import Loader
from potstill.matching.objective import Objective
from potstill.measure import OneInput
from potstill.prune.masks import hold, nonzero
from potstill.schemes import Offline
from potstill.schemes.settings import (
    AdversarialConfig,
    AnyScheme,
    DeepSupervisionConfig,
    Ingredients,
    LabelsConfig,
    MutualConfig,
    OfflineConfig,
)
from potstill.tasks import ImageFromNoise, ImageToImage, Task
from potstill.teachers import MixedAnswers
from potstill.train.course import Prepare
from potstill.train.precision import Precision

__all__ = ["ARMS", "Arm", "Experiment"]

Arm = Literal["control", "student"]
ARMS: tuple[Arm, ...] = ("control", "student")
EVALUATION_BATCH = 256
OTHER_SEEDS = 1_000_003
"""From one network of a scheme to the next: apart from the seeds of a recipe's runs."""
FITTED_TO = 8
"""Samples that adapters are fitted to: a map has many positions, and each costs a pass of the teacher."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A loaded recipe: data, task, teacher, and how to make a fresh student.

    Attributes:
        recipe: The resolved recipe.
        splits: Training, validation and test part.
        task: What is learnt, without augmentation.
        source: Gives the teacher, where the scheme has one: always the same network, loaded when it is asked
            for first.
        fresh: Makes the student of a seed, on the CPU, right after ``torch.manual_seed(seed)``.
        others: The same for other architectures that the scheme names.
        device: Where networks and batches live.
        precision: What the forward passes compute in.
        search: Where relative paths were looked up.
        notes: What the loading wants the reader to know.
        answers: Where the teacher's answers are kept, for trainings that see the same batches.
        shelf: Where they are kept on disk, if the recipe says so.
        known: What a full cache says of the teacher.
        lessons: What the student learns from, where that is something else than the training part: the
            teacher's answers.
        held: Weights of layers that are zero in a fresh student stay zero.
    """

    recipe: Recipe
    splits: Splits[Any]
    task: Task
    source: Callable[[], nn.Module] | None
    fresh: Callable[[], nn.Module]
    device: torch.device
    precision: Precision
    others: tuple[Callable[[], nn.Module], ...] = ()
    search: tuple[Path, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)
    answers: Answers | None = None
    shelf: Shelf | None = None
    known: KnownTeacher | None = None
    lessons: SampleSet | None = None
    held: bool = False

    @property
    def taught(self) -> bool:
        """Whether there is a trained teacher."""
        return self.source is not None

    @property
    def teacher(self) -> nn.Module | None:
        """The frozen teacher on the device, where the scheme has one; asking for it loads it."""
        return None if self.source is None else self.source()

    def student(self, seed: int) -> nn.Module:
        """A student with the initial weights of ``seed``, the same for every arm."""
        return self._network(self.fresh, seed)

    def _network(self, fresh: Callable[[], nn.Module], seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = fresh().to(self.device)
        if self.precision.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self.held:
            hold(model, nonzero(model))
        return model

    def scheme(self, arm: Arm, seed: int) -> AnyScheme:
        """The scheme of one arm and seed; the control is the student with no teacher."""
        eyes = self.task.eyes if isinstance(self.task, ImageToImage | ImageFromNoise) else None
        game = isinstance(self.recipe.scheme, AdversarialConfig)
        objective = Objective(self.recipe.distill, self.task.supervised, eyes=eyes, beside=game)
        if arm == "control" and not game:
            return Offline(self.student(seed), None, objective.without_terms())
        ingredients = Ingredients(
            fresh=lambda place, number: self._network(self._maker(place), seed + OTHER_SEEDS * number),
            teacher=self.teaching(seed),
            objective=objective,
            example=self.example(FITTED_TO if objective.fitted else 2),
            samples=len(self._learnt("student")),
            classes=self.task.num_classes,
            seed=seed,
        )
        scheme = self.recipe.scheme.build(ingredients)
        return scheme.control(self.student(seed)) if arm == "control" else scheme

    def teaching(self, seed: int) -> nn.Module | None:
        """Who teaches the students of a seed: the teacher, or what remembers its answers."""
        mixed = self.recipe.augment.mix_targets
        if self.source is not None and self.shelf is not None:
            source, objective = self.source, Objective(self.recipe.distill, self.task.supervised)
            live = (lambda: MixedAnswers(source())) if mixed else source
            return self.shelf.teacher(live, seed, objective.temperatures)
        teacher = self.teacher
        # What is answered beside a student (a detector, by the student's regions) is another's no use.
        if teacher is not None and self.answers is not None and not hasattr(teacher, "beside"):
            self.answers.begin(seed)
            teacher = Remembered(teacher, self.answers)
        return MixedAnswers(teacher) if teacher is not None and mixed else teacher

    def _maker(self, place: int | None) -> Callable[[], nn.Module]:
        return self.fresh if place is None else self.others[place]

    def networks(self) -> dict[str, nn.Module]:
        """Blank networks for all that the student's scheme trains, by name."""
        names = self.recipe.scheme.networks_by_name()
        return {name: self._maker(place)() for name, place in names.items()}

    def blank(self, arm: Arm) -> nn.Module:
        """A network on the CPU that the weights of ``arm`` fit."""
        config, network = self.recipe.scheme, self.fresh()
        if arm == "student" and isinstance(config, DeepSupervisionConfig):
            return config.with_exits(network, self.example().to("cpu"))
        return network

    def example(self, samples: int = 2) -> Batch:
        """The first plain training samples (the last again where there are fewer), for shapes and fits."""
        last = len(self.splits.train) - 1
        return self.task.plain_batch(*self.splits.train.__getitems__([min(n, last) for n in range(samples)]))

    def training(
        self, seed: int, arm: Arm = "student", batch_size: int | None = None
    ) -> tuple[Loader, Prepare]:
        """The training batches of a seed and how to prepare them; equal for both arms.

        ``batch_size`` is ``train.batch_size`` where it is not given.

        Where the teacher's answers are cached, views come again after as many epochs as are stored. What
        peers with views of their own see beside it stands in the student's batches under their names.
        """
        learnt = self._learnt(arm)
        task = self.task.seeded(seed, len(learnt))
        partners, prepare = task.partners, task.training_batch
        if self.shelf is not None:
            partners, prepare = _repeated(task, self.shelf.views)
        loader = Loader(
            learnt,
            batch_size=batch_size or self.recipe.train.batch_size,
            seed=seed,
            shuffle=True,
            drop_last=True,
            workers=self.recipe.data.workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            partners=partners,
        )
        own = self._own_views(seed) if arm == "student" else {}
        return loader, functools.partial(_prepared, task, own) if own else prepare

    def _learnt(self, arm: Arm) -> SampleSet:
        """What an arm learns from."""
        train: SampleSet = self.splits.train
        return self.lessons if arm == "student" and self.lessons is not None else train

    def _own_views(self, seed: int) -> dict[str, Task]:
        """For each peer but the first, where they have views of their own, the task with another seed's."""
        config, samples = self.recipe.scheme, len(self.splits.train)
        if not isinstance(config, MutualConfig) or config.views == "shared":
            return {}
        return {
            name: self.task.seeded(seed + OTHER_SEEDS * number, samples)
            for number, name in enumerate(config.networks_by_name())
            if number
        }

    @property
    def has_control(self) -> bool:
        """Whether there is a plain training to compare with.

        Exits alone leave the network as it came, and what learns from labels alone, or in a game without a
        teacher, is its own control. Where a teacher's answers are all there is, nothing is left without it.
        """
        scheme = self.recipe.scheme
        if isinstance(scheme, OfflineConfig) and self.task.supervised is None:
            return False
        untaught = isinstance(scheme, AdversarialConfig) and self.recipe.teacher is None
        if untaught or isinstance(scheme, LabelsConfig):
            return False
        return not isinstance(scheme, DeepSupervisionConfig) or scheme.train_backbone

    def evaluation(self, part: SampleSet) -> Loader:
        """Every sample of ``part`` exactly once over all ranks, in order."""
        return Loader(
            part,
            batch_size=min(EVALUATION_BATCH, len(part)),
            seed=0,
            shuffle=False,
            drop_last=False,
            workers=self.recipe.data.workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def inputs(self) -> dict[str, OneInput]:
        """One input of each network, or its shape, to measure them with."""
        roles = ("teacher", "student") if self.taught else ("student",)
        return {role: self.task.one_input(role, self.splits.train) for role in roles}


def _repeated(task: Task, views: int) -> tuple[Callable[[Tensor, int], Tensor] | None, Prepare]:
    """Partners and batches of a task that come again after so many epochs."""
    partners = task.partners

    def repeated(index: Tensor, epoch: int) -> Tensor:
        assert partners is not None, "only a task that mixes is asked"
        return partners(index, epoch % views)

    def prepare(samples: Any, target: Any, index: Tensor, epoch: int) -> Batch:
        return task.training_batch(samples, target, index, epoch % views)

    return None if partners is None else repeated, prepare


def _prepared(
    task: Task, own: Mapping[str, Task], samples: Any, target: Any, index: Tensor, view: int
) -> Batch:
    """A training batch, with the student's input of each of the other tasks under its name."""
    batch = task.training_batch(samples, target, index, view)
    views = {
        name: each.training_batch(samples, target, index, view).input("student") for name, each in own.items()
    }
    return replace(batch, inputs={**batch.inputs, **views})
