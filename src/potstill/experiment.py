"""Everything a run needs, loaded and checked before anything is written or trained."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from potstill import distributed
from potstill.augment import Augment
from potstill.batch import Batch
from potstill.config import Recipe
from potstill.data import ImageSet, Splits, load_data
from potstill.data.loader import Loader
from potstill.errors import UserError
from potstill.models.load import build
from potstill.models.preprocessing import Preprocessing, preprocessing_of
from potstill.models.weights import load_weights
from potstill.objective import Objective
from potstill.schemes import Offline
from potstill.specs import find
from potstill.tasks import Classification
from potstill.teachers import Frozen
from potstill.train.precision import Precision, choose

__all__ = ["ARMS", "Arm", "Experiment", "load_experiment", "rehearse", "search_path"]

Arm = Literal["control", "student"]
ARMS: tuple[Arm, ...] = ("control", "student")
EVALUATION_BATCH = 256


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
        teacher: The frozen teacher on the device.
        fresh: Makes the student of a seed, on the CPU, right after ``torch.manual_seed(seed)``.
        device: Where networks and batches live.
        precision: What the forward passes compute in.
        search: Where relative paths were looked up.
        notes: What the loading wants the reader to know.
    """

    recipe: Recipe
    splits: Splits
    task: Classification
    teacher: nn.Module
    fresh: Callable[[], nn.Module]
    device: torch.device
    precision: Precision
    search: tuple[Path, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)

    def student(self, seed: int) -> nn.Module:
        """A student with the initial weights of ``seed``, the same for every arm."""
        torch.manual_seed(seed)
        model = self.fresh().to(self.device)
        return model.to(memory_format=torch.channels_last) if self.precision.channels_last else model

    def scheme(self, arm: Arm, seed: int) -> Offline:
        """The scheme of one arm and seed; the control has the same student and no teacher."""
        student = self.student(seed)
        objective = Objective(self.recipe.distill, self.task.supervised)
        if arm == "control":
            return Offline(student, None, objective.without_terms())
        samples = len(self.splits.train)
        return Offline(student, self.teacher, objective, example=self.example(), samples=samples)

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
        return {role: tuple(example.input(role).shape[1:]) for role in ("teacher", "student")}

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

    def made(role: Literal["teacher", "student"]) -> nn.Module:
        config = recipe.teacher if role == "teacher" else recipe.student
        model = build(config, num_classes=num_classes, search=search, where=role)
        if config.weights is not None:
            load_weights(model, find(config.weights, search, f"{role}.weights"), f"{role}.weights")
        return model

    if recipe.teacher.weights is None and not recipe.teacher.pretrained and not recipe.teacher.arguments:
        raise UserError("teacher.weights", "missing; a teacher with random weights has nothing to teach")
    channels = splits.train.channels
    teacher = made("teacher")
    torch.manual_seed(recipe.seed)
    student = made("student")
    teacher_view = preprocessing_of(teacher, recipe.teacher, channels, None, where="teacher")
    student_view = preprocessing_of(student, recipe.student, channels, teacher_view)
    return assemble(
        recipe,
        splits,
        teacher=teacher,
        student=student,
        fresh=lambda: made("student"),
        preprocessing={"student": student_view, "teacher": teacher_view},
        search=tuple(search),
    )


def assemble(
    recipe: Recipe,
    splits: Splits,
    *,
    teacher: nn.Module,
    student: nn.Module,
    fresh: Callable[[], nn.Module],
    preprocessing: Mapping[str, Preprocessing],
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
    _, prepare = experiment.training(seed)
    images, labels, index = experiment.splits.train.__getitems__(
        list(range(min(4, len(experiment.splits.train))))
    )
    with experiment.precision.autocast(experiment.device):  # with gradients: some losses look at them
        experiment.scheme("student", seed)(prepare(images, labels, index, 0), "train")


def _check_outputs(experiment: Experiment, student: nn.Module) -> None:
    """Both networks answer ``(N, classes)`` for the data's images."""
    batch = experiment.example()
    teacher = Frozen(experiment.teacher)
    wanted = (len(batch), experiment.task.num_classes)
    was_training = student.training
    for role, model in (
        ("teacher", teacher),
        ("student", copy.deepcopy(student).to(experiment.device).eval()),
    ):
        images = batch.input(role)
        try:
            with torch.no_grad():
                output = teacher(batch).output if role == "teacher" else model(images)
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
    student.train(was_training)
