"""Everything a run needs, loaded and checked before anything is written or trained."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from potstill import distributed
from potstill.answers import Answers, Remembered
from potstill.augment import Augment
from potstill.batch import Batch
from potstill.config import Recipe
from potstill.data import ImageSet, Splits, load_data
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.models.load import ModelConfig, build
from potstill.models.preprocessing import Preprocessing, preprocessing_of
from potstill.models.weights import load_weights
from potstill.objective import Objective
from potstill.schemes import Offline
from potstill.schemes.settings import AnyScheme, DeepSupervisionConfig, Ingredients, others_of
from potstill.specs import find
from potstill.tasks import Classification
from potstill.train.course import Course
from potstill.train.precision import Precision, choose

__all__ = ["ARMS", "Arm", "Experiment", "load_experiment", "rehearse", "search_path"]

Arm = Literal["control", "student"]
ARMS: tuple[Arm, ...] = ("control", "student")
EVALUATION_BATCH = 256
OTHER_SEEDS = 1_000_003
"""From one network of a scheme to the next: apart from the seeds of a recipe's runs."""


def search_path(data: Path | None) -> tuple[Path, ...]:
    """Where relative paths are looked up: ``--data``, then ``POTSTILL_DATA``, then here.

    Raises:
        UserError: If ``data`` is given and is no folder.
    """
    if data is not None and not data.is_dir():
        raise UserError("--data", f"expected a folder, got {data}")
    named = os.environ.get("POTSTILL_DATA")
    folders = [data, Path(named) if named else None, Path.cwd()]
    return tuple(folder.resolve() for folder in folders if folder is not None)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A loaded recipe: data, task, teacher, and how to make a fresh student.

    Attributes:
        recipe: The resolved recipe.
        splits: Training, validation and test part.
        task: What is learnt, without augmentation.
        teacher: The frozen teacher on the device, where the scheme has one.
        fresh: Makes the student of a seed, on the CPU, right after ``torch.manual_seed(seed)``.
        others: The same for other architectures that the scheme names.
        device: Where networks and batches live.
        precision: What the forward passes compute in.
        search: Where relative paths were looked up.
        notes: What the loading wants the reader to know.
        answers: Where the teacher's answers are kept, for trainings that see the same batches.
    """

    recipe: Recipe
    splits: Splits
    task: Classification
    teacher: nn.Module | None
    fresh: Callable[[], nn.Module]
    device: torch.device
    precision: Precision
    others: tuple[Callable[[], nn.Module], ...] = ()
    search: tuple[Path, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)
    answers: Answers | None = None

    def student(self, seed: int) -> nn.Module:
        """A student with the initial weights of ``seed``, the same for every arm."""
        return self._network(self.fresh, seed)

    def _network(self, fresh: Callable[[], nn.Module], seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = fresh().to(self.device)
        return model.to(memory_format=torch.channels_last) if self.precision.channels_last else model

    def scheme(self, arm: Arm, seed: int) -> AnyScheme:
        """The scheme of one arm and seed; the control is the student with no teacher."""
        objective = Objective(self.recipe.distill, self.task.supervised)
        if arm == "control":
            return Offline(self.student(seed), None, objective.without_terms())
        ingredients = Ingredients(
            fresh=lambda place, number: self._network(self._maker(place), seed + OTHER_SEEDS * number),
            teacher=self._teaching(seed),
            objective=objective,
            example=self.example(),
            samples=len(self.splits.train),
            classes=self.task.num_classes,
        )
        return self.recipe.scheme.build(ingredients)

    def _teaching(self, seed: int) -> nn.Module | None:
        if self.answers is None or self.teacher is None:
            return self.teacher
        self.answers.begin(seed)
        return Remembered(self.teacher, self.answers)

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

    def example(self) -> Batch:
        """Two plain training samples, for shapes."""
        images, labels, index = self.splits.train.__getitems__([0, min(1, len(self.splits.train) - 1)])
        return self.task.plain_batch(images, labels, index)

    def training(self, seed: int) -> tuple[Loader, Callable[[Tensor, Tensor, Tensor, int], Batch]]:
        """The training batches of a seed and how to prepare them; equal for both arms."""
        loader = Loader(
            self.splits.train,
            batch_size=self.recipe.train.batch_size,
            seed=seed,
            shuffle=True,
            drop_last=True,
            workers=self.recipe.data.workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        task = replace(self.task, augment=Augment(self.recipe.augment, seed))
        return loader, task.training_batch

    def evaluation(self, part: ImageSet) -> Loader:
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

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one image as each network sees it, after its own resize."""
        example = self.example()
        return {role: tuple(images.shape[1:]) for role, images in example.inputs.items()}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one image as the data gives it, ``(C, H, W)``."""
        height, width = self.splits.train.size
        return (self.splits.train.channels, height, width)


def load_experiment(recipe: Recipe, search: Sequence[Path]) -> Experiment:
    """Load data, teacher and student of a recipe, and check that they fit each other.

    Raises:
        UserError: Whatever is missing or does not fit, at its dotted key.
    """
    splits = load_data(recipe.data, search=search)
    num_classes = len(splits.train.class_names)

    def made(config: ModelConfig, where: str) -> nn.Module:
        model = build(config, num_classes=num_classes, search=search, where=where)
        if config.weights is not None:
            load_weights(model, find(config.weights, search, f"{where}.weights"), f"{where}.weights")
        return model

    _check_weights(recipe)
    channels = splits.train.channels
    teacher = None if recipe.teacher is None else made(recipe.teacher, "teacher")
    torch.manual_seed(recipe.seed)
    student = made(recipe.student, "student")
    views: dict[str, Preprocessing] = {}
    if teacher is not None and recipe.teacher is not None:
        views["teacher"] = preprocessing_of(teacher, recipe.teacher, channels, None, where="teacher")
    views["student"] = preprocessing_of(student, recipe.student, channels, views.get("teacher"))
    return assemble(
        recipe,
        splits,
        teacher=teacher,
        student=student,
        fresh=lambda: made(recipe.student, "student"),
        preprocessing=views,
        others=tuple(
            functools.partial(made, config, f"scheme.networks.{place}")
            for place, config in enumerate(others_of(recipe.scheme))
        ),
        search=tuple(search),
    )


def _check_weights(recipe: Recipe) -> None:
    """Networks that do not learn must have learnt before."""

    def untrained(config: ModelConfig) -> bool:
        return config.weights is None and not config.pretrained and not config.arguments

    if recipe.teacher is not None and untrained(recipe.teacher):
        raise UserError("teacher.weights", "missing; a teacher with random weights has nothing to teach")
    scheme = recipe.scheme
    if isinstance(scheme, DeepSupervisionConfig) and not scheme.train_backbone and untrained(recipe.student):
        raise UserError(
            "student.weights", "missing; with scheme.train_backbone: false only exits are trained"
        )
    for place, config in enumerate(others_of(scheme)):
        for key in ("mean", "std", "size"):
            if getattr(config, key) is not None:
                where = f"scheme.networks.{place}.{key}"
                raise UserError(where, "has no meaning; all networks see the student's images")


def assemble(
    recipe: Recipe,
    splits: Splits,
    *,
    teacher: nn.Module | None,
    student: nn.Module,
    fresh: Callable[[], nn.Module],
    preprocessing: Mapping[str, Preprocessing],
    others: tuple[Callable[[], nn.Module], ...] = (),
    search: tuple[Path, ...] = (),
) -> Experiment:
    """An experiment from loaded parts; the command line and ``potstill.distill`` meet here."""
    device = _device(recipe.train.device)
    precision = choose(recipe.train.precision, device, student)
    task = Classification(
        class_names=splits.train.class_names,
        preprocessing=preprocessing,
        label_smoothing=recipe.train.label_smoothing,
        device=device,
        channels_last=precision.channels_last,
    )
    if teacher is not None:
        teacher = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
        if precision.channels_last:
            teacher = teacher.to(memory_format=torch.channels_last)
    resolved = replace(recipe, train=replace(recipe.train, precision=precision.name))
    experiment = Experiment(
        recipe=resolved,
        splits=splits,
        task=task,
        teacher=teacher,
        fresh=fresh,
        device=device,
        precision=precision,
        others=others,
        search=search,
        notes=tuple(splits.notes),
    )
    _check_batch_size(experiment)
    _check_outputs(experiment, student)
    rehearse(experiment)
    return experiment


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError("train.device", f"expected auto, cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device", f"got {name!r}, but torch sees no CUDA device here")
    return device


def _check_batch_size(experiment: Experiment) -> None:
    size, rows = experiment.recipe.train.batch_size, len(experiment.splits.train)
    if size > rows:
        raise UserError("train.batch_size", f"must be at most the {rows} training samples, got {size}")


def rehearse(experiment: Experiment) -> None:
    """One small training batch through the whole scheme: what cannot work stops before the run starts."""
    seed = experiment.recipe.seed
    loader, prepare = experiment.training(seed)
    images, labels, index = experiment.splits.train.__getitems__(
        list(range(min(4, len(experiment.splits.train))))
    )
    scheme = experiment.scheme("student", seed)
    Course(loader, experiment.recipe.train, scheme.stages)
    for stage in scheme.stages:
        scheme.enter(stage.name)
        for phase in stage.phases:
            with experiment.precision.autocast(experiment.device):  # with gradients: some losses need them
                scheme(prepare(images, labels, index, 0), phase)


def _check_outputs(experiment: Experiment, student: nn.Module) -> None:
    """All networks answer ``(N, classes)`` for the data's images."""
    batch = experiment.example()
    wanted = (len(batch), experiment.task.num_classes)
    networks = {} if experiment.teacher is None else {"teacher": experiment.teacher}
    networks["student"] = copy.deepcopy(student)
    networks |= {f"scheme.networks.{place}": make() for place, make in enumerate(experiment.others)}
    for role, model in networks.items():
        images = batch.input(role)
        try:
            with torch.no_grad():
                output = model.to(experiment.device).eval()(images)
        except (RuntimeError, TypeError) as error:
            shape = tuple(images.shape)
            raise UserError(role, f"cannot run on the data's images {shape}: {error}") from error
        output = output[0] if isinstance(output, tuple) else output
        if not isinstance(output, Tensor) or tuple(output.shape) != wanted:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(
                f"{role}.model",
                f"expected logits {wanted} for the data's {wanted[1]} classes, got {got}",
            )
