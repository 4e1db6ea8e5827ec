"""A recipe loaded and checked: data, networks and how they fit each other, before anything is written."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from potstill.config import Recipe
from potstill.data import Splits, load_data
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.models.load import ModelConfig, build
from potstill.models.preprocessing import Preprocessing, preprocessing_of
from potstill.models.weights import load_weights
from potstill.schemes.settings import DeepSupervisionConfig, others_of
from potstill.specs import find
from potstill.tasks import Classification
from potstill.train.course import Course
from potstill.train.precision import choose

__all__ = ["assemble", "load_experiment", "rehearse", "search_path"]


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
    rows = loader.read(list(range(min(4, len(experiment.splits.train)))), 0)
    scheme = experiment.scheme("student", seed)
    Course(loader, experiment.recipe.train, scheme.stages)
    for stage in scheme.stages:
        scheme.enter(stage.name)
        for phase in stage.phases:
            with experiment.precision.autocast(experiment.device):  # with gradients: some losses need them
                scheme(prepare(*rows, 0), phase)


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
