"""From a YAML file and overrides to a checked recipe, and back to YAML."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from potstill.config.consistency import check_sections, is_served
from potstill.config.recipe import KINDS, ImageRecipe, Recipe
from potstill.config.yaml_text import parse_yaml, set_key
from potstill.errors import UserError, nearest
from potstill.sections import read_section

__all__ = ["dump", "from_mapping", "load", "shipped_recipes"]


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("potstill") / "recipes"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by file or shipped name, with ``a.b=value`` overrides.

    Raises:
        UserError: If there is no such recipe, or anything in it does not hold.
    """
    raw = _read(recipe)
    for override in overrides:
        set_key(raw, override)
    return from_mapping(raw)


def _read(recipe: str | Path) -> dict[str, Any]:
    path = Path(recipe)
    if path.is_dir():
        raise UserError(str(recipe), "expected a recipe file, got a folder")
    if path.is_file():
        text = path.read_text(encoding="utf-8")
    elif str(recipe) in shipped_recipes():
        text = (resources.files("potstill") / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
    else:
        names = shipped_recipes()
        raise UserError(str(recipe), f"no such recipe file or shipped recipe{nearest(str(recipe), names)}")
    return parse_yaml(text, str(recipe))


def from_mapping(raw: Mapping[str, Any]) -> Recipe:
    """Validate a mapping as a recipe.

    Raises:
        UserError: At the dotted key that is unknown, missing, of a wrong type or out of range.
    """
    if raw.get("prune") is not None and "student" not in raw and "teacher" in raw:
        raw = {**raw, "student": _whole(raw)}
    recipe: Recipe = read_section(KINDS.get(str(raw.get("task")), Recipe), raw, "")
    if "distill" not in raw:
        recipe = dataclasses.replace(recipe, distill=copy.deepcopy(_usual(recipe)))
    check_sections(recipe)
    return recipe


def _usual(recipe: Recipe) -> dict[str, Any]:
    """What is matched where the recipe does not say."""
    if isinstance(recipe, ImageRecipe) and recipe.scheme.kind == "adversarial" and not recipe.data.has_truth:
        return {} if recipe.teacher is None else {"image_l1": {}}
    return {"labels": {}} if is_served(recipe) else dict(recipe.scheme.distill)


def _whole(raw: Mapping[str, Any]) -> Any:
    """The student of a recipe that prunes: the teacher before anything is removed."""
    if raw.get("task") in ("language_modeling", "text_classification"):
        return {"model": "teacher"}
    teacher = copy.deepcopy(raw["teacher"])
    if isinstance(teacher, dict):
        teacher.pop("cache", None)
    return teacher


def dump(recipe: Recipe) -> str:
    """The recipe as YAML that :func:`load` reads back to an equal recipe."""
    plain = dataclasses.asdict(recipe)
    text: str = yaml.safe_dump(_plain(plain), sort_keys=False, allow_unicode=True, width=100)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
