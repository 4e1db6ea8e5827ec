"""A recipe loaded and checked: data, networks and how they fit each other, before anything is written."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from potstill.assembly.caching import shelf_of
from potstill.assembly.detectors import detectors
from potstill.assembly.generators import pictures, with_references
from potstill.assembly.images import images
from potstill.assembly.language import language
from potstill.assembly.materials import Material, device_of
from potstill.assembly.texts import texts
from potstill.batch import Batch, Inputs, ask
from potstill.config import ImageRecipe, LanguageRecipe, Recipe
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.matching.taps import first_tensor
from potstill.models.load import ModelConfig
from potstill.models.pretrained import PREFIX
from potstill.schemes.settings import AnyScheme, DeepSupervisionConfig, others_of
from potstill.teachers import Ensemble
from potstill.train.course import Course
from potstill.train.precision import choose

__all__ = ["assemble", "load_experiment", "rehearse", "search_path"]

TASKS: dict[str, Callable[..., Material]] = {
    "classification": images,
    "text_classification": texts,
    "language_modeling": language,
    "detection": detectors,
    "image_to_image": pictures,
}
"""What loads the data and networks of each task."""
UNFIT = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""What a network raises that cannot make sense of its inputs."""


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
    if not isinstance(recipe, LanguageRecipe):  # whose teacher may be corrected first
        _check_weights(recipe)
    experiment = assemble(recipe, TASKS[recipe.task](recipe, search), search)
    return with_references(experiment) if isinstance(recipe, ImageRecipe) else experiment


def _check_weights(recipe: Recipe) -> None:
    """Networks that do not learn must have learnt before."""

    def untrained(config: ModelConfig) -> bool:
        library = config.model.startswith(PREFIX)
        return config.weights is None and not (config.pretrained or config.arguments or library)

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
                place_of = "discriminator" if scheme.kind == "adversarial" else f"networks.{place}"
                where = f"scheme.{place_of}.{key}"
                raise UserError(where, "has no meaning; all networks see the student's images")


def assemble(recipe: Recipe, material: Material, search: Sequence[Path] = ()) -> Experiment:
    """An experiment from loaded parts; the command line and ``potstill.distill`` meet here."""
    if len(material.others) < len(others_of(recipe.scheme)):
        raise UserError("scheme.networks", f"has no meaning with task: {recipe.task}; leave it out")
    teacher, student, shelf = material.teacher, material.student, material.shelf
    device = device_of(recipe.train.device)
    precision = choose(recipe.train.precision, device, student)
    if isinstance(teacher, nn.Module):
        shelf = shelf or shelf_of(
            recipe,
            material.splits,
            search,
            precision.name,
            teacher=teacher,
            inputs=material.task.describe_input("teacher"),
        )
    resolved = material.resolved or recipe
    resolved = replace(resolved, train=replace(resolved.train, precision=precision.name))
    experiment = Experiment(
        recipe=resolved,
        splits=material.splits,
        task=material.task.placed(device, channels_last=precision.channels_last),
        source=None if teacher is None else _loaded(teacher, device, channels_last=precision.channels_last),
        fresh=material.fresh,
        device=device,
        precision=precision,
        others=material.others,
        search=tuple(search),
        notes=(*material.splits.notes, *material.notes, *_own_ways(recipe)),
        shelf=shelf,
        known=material.known,
    )
    _check_batch_size(experiment)
    _check_outputs(experiment, student)
    experiment = experiment if material.finish is None else material.finish(experiment)
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
            _rehearse_phase(experiment, scheme, prepare(*rows, 0), phase)


def _rehearse_phase(experiment: Experiment, scheme: AnyScheme, batch: Batch, phase: str) -> None:
    try:
        with experiment.precision.autocast(experiment.device):  # with gradients: some losses need them
            scheme(batch, phase)
    except UserError:
        raise
    except UNFIT as error:
        raise UserError(
            "scheme",
            f"{experiment.recipe.scheme.kind} cannot run its phase {phase!r} on {experiment.task.samples} "
            f"{_shape(batch.input('student'))} of training: {type(error).__name__}: {error}",
        ) from error


def _shape(inputs: Inputs) -> tuple[int, ...] | None:
    first = first_tensor(inputs)
    return None if first is None else tuple(first.shape)


def _check_outputs(experiment: Experiment, student: nn.Module) -> None:
    """All networks answer to the data's samples, and so that the task can learn from it."""
    batch = experiment.example()
    networks: dict[str, nn.Module] = {}
    if experiment.known is None and (teacher := experiment.teacher) is not None:
        lead, *others = teacher.networks if isinstance(teacher, Ensemble) else [teacher]
        networks = {"teacher": lead} | {f"co_teachers.{place}": one for place, one in enumerate(others)}
    networks["student"] = copy.deepcopy(student)
    places = experiment.recipe.scheme.networks_by_name().values()  # a discriminator answers otherwise
    networks |= {f"scheme.networks.{each}": experiment.others[each]() for each in places if each is not None}
    for role, model in networks.items():
        inputs = batch.input(role)
        try:
            with torch.no_grad():
                output = ask(model.to(experiment.device).eval(), inputs)
        except UserError:
            raise
        except UNFIT as error:
            raise UserError(
                role, f"cannot run on the data's {experiment.task.samples} {_shape(inputs)}: {error}"
            ) from error
        experiment.task.check_output(output, batch, role)


def _own_ways(recipe: Recipe) -> Iterator[str]:
    """A peer that may become the student and does not learn as the control does."""
    for name, place in recipe.scheme.networks_by_name().items():
        if name in recipe.train.others and place is None:
            yield (
                f"{name} learns in its own way (train.others); if it is the best peer, the student differs "
                "from its control, which learns as train says, in that too"
            )
