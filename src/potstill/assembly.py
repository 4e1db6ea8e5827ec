"""A recipe loaded and checked: data, networks and how they fit each other, before anything is written."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.batch import ask
from potstill.cache import KnownTeacher, Shelf
from potstill.caching import parts_of, shelf_of
from potstill.config import LanguageRecipe, Recipe
from potstill.data import ImageSet, Splits, load_data
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.language import language_parts, with_teacher
from potstill.models.load import ModelConfig, build
from potstill.models.preprocessing import Preprocessing, preprocessing_of
from potstill.models.weights import load_weights
from potstill.schemes.settings import DeepSupervisionConfig, others_of
from potstill.specs import find
from potstill.taps import first_tensor
from potstill.tasks import Classification, Task
from potstill.teachers import Ensemble
from potstill.train.course import Course
from potstill.train.precision import choose

__all__ = ["assemble", "load_experiment", "of_images", "rehearse", "search_path"]


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
    if isinstance(recipe, LanguageRecipe):
        parts = language_parts(recipe, search)
        return with_teacher(assemble(recipe, **parts, search=tuple(search)))
    _check_weights(recipe)
    return _of_images(recipe, search)


def _of_images(recipe: Recipe, search: Sequence[Path]) -> Experiment:
    splits = load_data(recipe.data, search=search)
    num_classes = len(splits.train.class_names)

    def made(config: ModelConfig, where: str) -> nn.Module:
        model = build(config, num_classes=num_classes, search=search, where=where)
        if config.weights is not None:
            load_weights(model, find(config.weights, search, f"{where}.weights"), f"{where}.weights")
        return model

    channels = splits.train.channels
    shelf, known = _cache(recipe, splits, search)
    config = recipe.teacher
    teacher = None if config is None or known is not None else made(config, "teacher")
    torch.manual_seed(recipe.seed)
    student = made(recipe.student, "student")
    views: dict[str, Preprocessing] = {}
    if known is not None and known.preprocessing is not None:
        views["teacher"] = known.preprocessing
    elif teacher is not None and config is not None:
        views["teacher"] = preprocessing_of(teacher, config, channels, None, where="teacher")
        teacher = _together(teacher, recipe.co_teachers, made, views["teacher"], channels)
    views["student"] = preprocessing_of(student, recipe.student, channels, views.get("teacher"))
    return assemble(
        recipe,
        splits,
        teacher=functools.partial(made, config, "teacher") if known is not None and config else teacher,
        student=student,
        fresh=lambda: made(recipe.student, "student"),
        task=of_images(recipe, splits, views, search),
        others=tuple(
            functools.partial(made, config, f"scheme.networks.{place}")
            for place, config in enumerate(others_of(recipe.scheme))
        ),
        search=tuple(search),
        shelf=shelf,
        known=known,
    )


def _together(
    teacher: nn.Module,
    configs: Sequence[ModelConfig],
    made: Callable[[ModelConfig, str], nn.Module],
    view: Preprocessing,
    channels: int,
) -> nn.Module:
    """The teacher, with the others that teach with it."""
    others = []
    for place, config in enumerate(configs):
        where = f"co_teachers.{place}"
        others.append(made(config, where))
        wanted = preprocessing_of(others[-1], config, channels, view, where=where)
        if wanted != view:
            raise UserError(
                where,
                f"must take the images that the teacher takes ({view.describe()}), got {wanted.describe()}",
            )
    return Ensemble([teacher, *others]) if others else teacher


def of_images(
    recipe: Recipe,
    splits: Splits[ImageSet],
    preprocessing: Mapping[str, Preprocessing],
    search: Sequence[Path] = (),
) -> Classification:
    """The task of a recipe for images, its networks' preprocessing by role."""
    return Classification(
        class_names=splits.train.class_names,
        preprocessing=preprocessing,
        augmentation=recipe.augment,
        search=search,
        label_smoothing=recipe.train.label_smoothing,
    )


def _cache(
    recipe: Recipe, splits: Splits[Any], search: Sequence[Path]
) -> tuple[Shelf | None, KnownTeacher | None]:
    """The cache that the recipe names, and what it says of the teacher, where it is full for every seed."""
    config = recipe.teacher
    if config is None or config.cache is None or not (config.weights or config.pretrained):
        return None, None  # of a teacher without a name for its weights, the weights must be seen
    precision = choose(recipe.train.precision, _device(recipe.train.device), nn.Identity())
    shelf = shelf_of(recipe, splits, search, precision.name, teacher=None)
    assert shelf is not None, "the recipe has a cache"
    parts = parts_of(splits)
    known = [KnownTeacher.load(shelf.vault(recipe.seed + number), parts) for number in range(recipe.seeds)]
    return shelf, None if None in known else known[0]


def _check_weights(recipe: Recipe) -> None:
    """Networks that do not learn must have learnt before."""

    def untrained(config: ModelConfig) -> bool:
        return config.weights is None and not config.pretrained and not config.arguments

    teachers: dict[str, ModelConfig] = {} if recipe.teacher is None else {"teacher": recipe.teacher}
    teachers |= {f"co_teachers.{place}": config for place, config in enumerate(recipe.co_teachers)}
    for where, teacher in teachers.items():
        if untrained(teacher):
            raise UserError(f"{where}.weights", "missing; a teacher with random weights has nothing to teach")
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
    splits: Splits[Any],
    *,
    teacher: nn.Module | Callable[[], nn.Module] | None,
    student: nn.Module,
    fresh: Callable[[], nn.Module],
    task: Task,
    others: tuple[Callable[[], nn.Module], ...] = (),
    search: tuple[Path, ...] = (),
    shelf: Shelf | None = None,
    known: KnownTeacher | None = None,
) -> Experiment:
    """An experiment from loaded parts; the command line and ``potstill.distill`` meet here.

    Args:
        recipe: The recipe.
        splits: Its data.
        teacher: The trained teacher, or what loads it, where it is ``known``.
        student: A student, for shapes.
        fresh: Makes students.
        task: What is learnt.
        others: Make the other networks of the scheme.
        search: Where relative paths were looked up.
        shelf: Where the teacher's answers are kept; made here, where the recipe wants it and it is absent.
        known: What a full cache says of the teacher.
    """
    device = _device(recipe.train.device)
    precision = choose(recipe.train.precision, device, student)
    if isinstance(teacher, nn.Module):
        words = task.describe_input("teacher")
        shelf = shelf or shelf_of(recipe, splits, search, precision.name, teacher=teacher, inputs=words)
    resolved = replace(recipe, train=replace(recipe.train, precision=precision.name))
    experiment = Experiment(
        recipe=resolved,
        splits=splits,
        task=task.placed(device, channels_last=precision.channels_last),
        source=None if teacher is None else _loaded(teacher, device, channels_last=precision.channels_last),
        fresh=fresh,
        device=device,
        precision=precision,
        others=others,
        search=search,
        notes=tuple(splits.notes),
        shelf=shelf,
        known=known,
    )
    _check_batch_size(experiment)
    _check_outputs(experiment, student)
    rehearse(experiment)
    return experiment


def _loaded(
    teacher: nn.Module | Callable[[], nn.Module], device: torch.device, *, channels_last: bool
) -> Callable[[], nn.Module]:
    """Gives a frozen copy of the teacher on the device; one that is not loaded yet is, at the first call."""

    def frozen() -> nn.Module:
        model = copy.deepcopy(teacher) if isinstance(teacher, nn.Module) else teacher()
        model = model.to(device).eval().requires_grad_(False)
        return model.to(memory_format=torch.channels_last) if channels_last else model

    source = functools.cache(frozen)
    if isinstance(teacher, nn.Module):
        source()
    return source


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
    for epoch in (0, 1):
        loader.check_unchanged(epoch)
    rows = loader.read(list(range(min(4, len(experiment.splits.train)))), 0)
    scheme = experiment.scheme("student", seed)
    Course(loader, experiment.recipe.train, scheme.stages)
    for stage in scheme.stages:
        scheme.enter(stage.name)
        for phase in stage.phases:
            with experiment.precision.autocast(experiment.device):  # with gradients: some losses need them
                scheme(prepare(*rows, 0), phase)


def _check_outputs(experiment: Experiment, student: nn.Module) -> None:
    """All networks answer to the data's samples, and so that the task can learn from it."""
    batch = experiment.example()
    networks: dict[str, nn.Module] = {}
    if experiment.known is None and (teacher := experiment.teacher) is not None:
        lead, *others = teacher.networks if isinstance(teacher, Ensemble) else [teacher]
        networks = {"teacher": lead} | {f"co_teachers.{place}": one for place, one in enumerate(others)}
    networks["student"] = copy.deepcopy(student)
    networks |= {f"scheme.networks.{place}": make() for place, make in enumerate(experiment.others)}
    for role, model in networks.items():
        inputs = batch.input(role)
        try:
            with torch.no_grad():
                output = ask(model.to(experiment.device).eval(), inputs)
        except (RuntimeError, TypeError, IndexError) as error:
            first = first_tensor(inputs)
            shape = None if first is None else tuple(first.shape)
            raise UserError(
                role, f"cannot run on the data's {experiment.task.samples} {shape}: {error}"
            ) from error
        experiment.task.check_output(output, batch, role)
