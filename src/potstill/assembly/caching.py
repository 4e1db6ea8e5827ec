"""Whose answers a cache holds: everything that decides them, as words that can be compared."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from potstill.augment import AugmentConfig
from potstill.cache import FORMAT, Shelf, TeacherConfig
from potstill.config import Recipe
from potstill.data import Splits
from potstill.files import sha256
from potstill.models.weights import fingerprint
from potstill.specs import find

__all__ = ["parts_of", "shelf_of"]

WEIGHTS = ("*.safetensors", "*.bin")


def shelf_of(
    recipe: Recipe,
    splits: Splits[Any],
    search: Sequence[Path],
    precision: str,
    *,
    teacher: nn.Module | None,
    inputs: str = "",
) -> Shelf | None:
    """Where the answers of a recipe's teacher are kept, if it wants them kept.

    Args:
        recipe: The recipe.
        splits: Its data.
        search: Where files are looked up.
        precision: What the teacher computes in.
        teacher: The network, where no file says what its weights are.
        inputs: How it wants its samples, where neither recipe nor network's code say so.
    """
    config, augment = recipe.teacher, recipe.augment
    if config is None or config.cache is None:
        return None
    augmented = augment != AugmentConfig()
    views = json.dumps(dataclasses.asdict(augment), sort_keys=True, default=str) if augmented else "none"
    own = "" if augment.own is None else f" by code {_code(augment.own.call, search)}"
    facts = {
        "format": FORMAT,
        **_teacher_facts(config, search, teacher),
        "preprocessing": inputs or f"mean {config.mean}, std {config.std}, size {config.size}",
        "precision": precision,
        "data": f"{splits.train.fingerprint()[:16]} ({len(splits.train)} samples)",
        "augmentation": views + own,
    }
    return Shelf(config.cache, facts, samples=len(splits.train), augmented=augmented)


def _teacher_facts(
    config: TeacherConfig, search: Sequence[Path], teacher: nn.Module | None
) -> dict[str, str]:
    """Which network, from which code, with which weights."""
    if config.weights is not None:
        weights = sha256(find(config.weights, search, "teacher.weights"))[:16]
    elif (folder := _saved(config.model, search)) is not None:
        files = [file for end in WEIGHTS for file in sorted(folder.glob(end))]
        weights = hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()[:16]
    elif teacher is None:
        weights = "its library's"
    else:
        weights = fingerprint(teacher)[:16]
    made = json.dumps(config.arguments, sort_keys=True, default=str)
    return {"teacher": f"{config.model} {made}", "code": _code(config.model, search), "weights": weights}


def _saved(spec: str, search: Sequence[Path]) -> Path | None:
    """The folder of a model of transformers, where it is here."""
    library, _, name = spec.partition(":")
    places = [folder / name for folder in search if library == "transformers"]
    return next((place for place in places if place.is_dir()), None)


def _code(spec: str, search: Sequence[Path]) -> str:
    """What decides how a network computes, beside its weights."""
    source, _, _ = spec.rpartition(":")
    if source in ("timm", "torchvision"):
        return f"{source} {metadata.version(source)}"
    if source.endswith(".py"):
        return sha256(find(source, search, "teacher.model"))[:16]
    if not source or source.partition(".")[0] == "potstill":
        return "potstill"
    found = importlib.util.find_spec(source)
    return sha256(Path(found.origin))[:16] if found is not None and found.origin else source


def parts_of(splits: Splits[Any]) -> str:
    """Fingerprint of the validation and the test part together."""
    both = splits.validation.fingerprint() + splits.test.fingerprint()
    return hashlib.sha256(both.encode()).hexdigest()[:16]
