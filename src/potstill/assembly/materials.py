"""What a task makes of a recipe's data, teacher and student, before a run is put together from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from potstill.assembly.caching import parts_of, shelf_of
from potstill.cache import KnownTeacher, Shelf
from potstill.config import Recipe
from potstill.data import Splits
from potstill.errors import UserError
from potstill.experiment import Experiment
from potstill.models.load import ModelConfig, build
from potstill.models.weights import load_weights
from potstill.specs import find
from potstill.tasks import Task
from potstill.train.precision import choose

__all__ = ["Material", "device_of", "kept_answers", "known_of", "made"]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Loaded parts of a run.

    Attributes:
        splits: Training, validation and test part.
        task: What is learnt.
        teacher: The trained teacher, where there is one, or what loads it, where it is ``known``.
        student: A first student, to look at.
        fresh: Makes a student, right after ``torch.manual_seed(seed)``.
        others: The same for other architectures that the scheme names.
        notes: What a reader should know of how they came about.
        shelf: Where the teacher's answers are kept, where that is known already.
        known: What a full cache says of the teacher.
        resolved: The recipe with what ``auto`` became, where the task has found that out.
        finish: What is left to do with the whole, its networks on their device.
    """

    splits: Splits[Any]
    task: Task
    teacher: nn.Module | Callable[[], nn.Module] | None
    student: nn.Module
    fresh: Callable[[], nn.Module]
    others: tuple[Callable[[], nn.Module], ...] = ()
    notes: tuple[str, ...] = ()
    shelf: Shelf | None = None
    known: KnownTeacher | None = None
    resolved: Recipe | None = None
    finish: Callable[[Experiment], Experiment] | None = None


def made(config: ModelConfig, search: Sequence[Path], where: str, **offered: Any) -> nn.Module:
    """A network with its weights; ``offered`` are arguments for makers that take them."""
    model = build(config, search=search, where=where, **offered)
    if config.weights is not None:
        load_weights(model, find(config.weights, search, f"{where}.weights"), f"{where}.weights")
    return model


def kept_answers(
    recipe: Recipe, splits: Splits[Any], search: Sequence[Path]
) -> tuple[Shelf | None, KnownTeacher | None]:
    """The cache that the recipe names, and what it says of the teacher, where it is full for every seed."""
    config = recipe.teacher
    if config is None or config.cache is None or not (config.weights or config.pretrained):
        return None, None  # of a teacher without a name for its weights, the weights must be seen
    precision = choose(recipe.train.precision, device_of(recipe.train.device), nn.Identity())
    shelf = shelf_of(recipe, splits, search, precision.name, teacher=None)
    assert shelf is not None, "the recipe has a cache"
    return shelf, known_of(recipe, shelf, splits)


def known_of(recipe: Recipe, shelf: Shelf, splits: Splits[Any]) -> KnownTeacher | None:
    """What a cache says of the teacher, where it is full for every seed."""
    parts = parts_of(splits)
    known = [_known(shelf, recipe.seed + number, parts) for number in range(recipe.seeds)]
    return None if None in known else known[0]


def _known(shelf: Shelf, seed: int, parts: str) -> KnownTeacher | None:
    """What any full cache of a seed says; which layers it holds does not matter here."""
    found = (KnownTeacher.load(vault, parts) for vault in shelf.full(seed))
    return next((known for known in found if known is not None), None)


def device_of(name: str) -> torch.device:
    """The device that a recipe names.

    Raises:
        UserError: If there is none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError("train.device", f"expected auto, cpu or cuda, got {name!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device", f"got {name!r}, but torch sees no CUDA device here")
    return device
