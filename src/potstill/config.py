"""The recipe: load a YAML file, apply overrides, validate, and dump it again.

Each section's dataclass stands beside the part it configures; this module only puts them together.
Every message starts with the dotted key (``train.learning_rate: must be > 0, got -1``).
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from potstill.augment import AugmentConfig
from potstill.data import DataConfig
from potstill.errors import UserError, nearest
from potstill.losses import Range
from potstill.models import ModelConfig
from potstill.terms import parse_terms
from potstill.train import TrainConfig

__all__ = ["Recipe", "dump", "from_mapping", "load", "parse_yaml", "shipped_recipes"]

COUNT = Range(least=1)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run; the resolved one is saved beside its results."""

    task: Literal["classification"] = "classification"
    """What is learnt."""
    data: DataConfig
    """What it is learnt from."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What both networks see of each training sample."""
    teacher: ModelConfig
    """The trained model to imitate."""
    student: ModelConfig
    """The model to train."""
    distill: dict[str, Any] = field(default_factory=lambda: {"kl": {}})
    """What is matched: ``{loss: {weight, layers, schedule, options...}}``, and ``labels``."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained."""
    seeds: Annotated[int, COUNT] = 1
    """Runs of each arm; from two on the verdict knows the spread between runs."""
    seed: Annotated[int, Range(least=0)] = 0
    """Seed of the first run; run k uses ``seed + k``."""
    notes: tuple[str, ...] = ()
    """What a reader of the report should know about the set-up."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-3`` as a number and refuses a key that occurs twice."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(str(key), f"key occurs twice, line {node.start_mark.line + 1}")
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


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
        _apply(raw, override)
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


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """A mapping from YAML, in which ``1e-3`` is a number and no key occurs twice.

    Raises:
        UserError: At ``where``, if it is something else.
    """
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(where, f"not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UserError(where, f"expected a mapping of keys, got {_kind(raw)}")
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError("--set", f"expected key=value, got {override!r}")
    *parents, last = key.split(".")
    node: Any = raw
    for depth, part in enumerate(parents):
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UserError(
                ".".join(parents[: depth + 1]), f"expected a mapping to set {last!r} in, got {node!r}"
            )
    try:
        node[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}", f"not valid YAML: {text!r}") from error


def from_mapping(raw: Mapping[str, Any]) -> Recipe:
    """Validate a mapping as a recipe.

    Raises:
        UserError: At the dotted key that is unknown, missing, of a wrong type or out of range.
    """
    recipe: Recipe = _section(Recipe, raw, "")
    parse_terms(recipe.distill)
    return recipe


def _section(cls: type[Any], raw: Any, where: str) -> Any:
    """One dataclass from a mapping: keys first, then types by pydantic, then ranges."""
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(raw, Mapping):
        raise UserError(where, f"expected a mapping of keys, got {_kind(raw)}")
    prefix = f"{where}." if where else ""
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            raise UserError(f"{prefix}{key}", f"unknown key{nearest(str(key), fields)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    values: dict[str, Any] = {}
    for name, item in fields.items():
        if name not in raw:
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise UserError(f"{prefix}{name}", "missing; this key has no default")
            continue
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            values[name] = _section(typing.cast(type[Any], hint), raw[name] or {}, f"{prefix}{name}")
            continue
        if isinstance(raw[name], bool) and not _allows(hint, bool):
            raise UserError(f"{prefix}{name}", f"expected {_words(hint)}, got {raw[name]!r}")
        try:
            values[name] = TypeAdapter(hint).validate_python(raw[name])
        except ValidationError as error:
            raise UserError(f"{prefix}{name}", _explain(hint, raw[name], error.errors())) from error
        _check_range(hint, values[name], f"{prefix}{name}")
    try:
        return cls(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(where or "recipe", str(error)) from error


def _explain(hint: Any, value: Any, errors: Sequence[Any]) -> str:
    for part in _parts(hint):
        if typing.get_origin(part) is Literal and isinstance(value, str):
            names = [str(name) for name in typing.get_args(part)]
            return f"expected one of {', '.join(names)}, got {value!r}{nearest(value, names)}"
    inner = [str(step) for step in errors[0]["loc"] if isinstance(step, int)]
    return f"expected {_words(hint)}, got {value!r}" + (f" (at position {inner[0]})" if inner else "")


def _parts(hint: Any) -> Iterator[Any]:
    """The alternatives of a type, without ``Annotated`` and unions."""
    if typing.get_origin(hint) is Annotated:
        yield from _parts(typing.get_args(hint)[0])
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _parts(part)
    else:
        yield hint


def _allows(hint: Any, cls: type[Any]) -> bool:
    return any(part is cls or part is Any for part in _parts(hint))


def _words(hint: Any) -> str:
    names = {int: "an integer", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return " or ".join(names.get(part, str(part).replace("typing.", "")) for part in _parts(hint))


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {value!r}"


def _check_range(hint: Any, value: Any, where: str) -> None:
    for limit in _ranges(hint):
        if value is None or isinstance(value, str):
            continue
        checks: list[tuple[float | None, str, Callable[[float, float], bool]]] = [
            (limit.above, ">", lambda x, y: x > y),
            (limit.least, ">=", lambda x, y: x >= y),
            (limit.most, "<=", lambda x, y: x <= y),
        ]
        for bound, sign, holds in checks:
            if bound is not None and not holds(value, bound):
                raise UserError(where, f"must be {sign} {bound:g}, got {value!r}")


def _ranges(hint: Any) -> Iterator[Range]:
    if typing.get_origin(hint) is Annotated:
        yield from (item for item in typing.get_args(hint)[1:] if isinstance(item, Range))
        yield from _ranges(typing.get_args(hint)[0])
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _ranges(part)


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
