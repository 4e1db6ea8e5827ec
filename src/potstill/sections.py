"""A section of a recipe: a dataclass from a mapping, with messages that start with the dotted key.

Fields may be plain types with ranges, dataclasses, tuples and mappings of dataclasses, and unions of
dataclasses that a key ``kind`` tells apart. Where a dataclass names one of its fields as ``shorthand``, a
plain number or text stands for it.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from potstill.errors import UserError, nearest
from potstill.losses import Range

__all__ = ["kind_of_value", "read_section"]


def read_section(cls: type[Any], raw: Any, where: str, others: Sequence[type[Any]] = ()) -> Any:
    """One dataclass from a mapping: keys first, then types by pydantic, then ranges.

    Args:
        cls: The dataclass.
        raw: What the recipe holds.
        where: Its dotted key, empty for the whole recipe.
        others: Other kinds of the same section, for messages.

    Raises:
        UserError: At the dotted key that is unknown, missing, of a wrong type or out of range.
    """
    if not isinstance(raw, Mapping):
        raise UserError(where, f"expected a mapping of keys, got {kind_of_value(raw)}")
    prefix = f"{where}." if where else ""
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key in raw:
        if key not in fields:
            raise UserError(f"{prefix}{key}", f"unknown key{_hint(str(key), fields, others)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    values: dict[str, Any] = {}
    for name, item in fields.items():
        if name not in raw:
            if item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise UserError(f"{prefix}{name}", "missing; this key has no default")
            continue
        values[name] = _value(hints[name], raw[name], f"{prefix}{name}")
    try:
        return cls(**values)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(where or "recipe", str(error)) from error


def _hint(key: str, fields: Mapping[str, Any], others: Sequence[type[Any]]) -> str:
    """The nearest name; or the kinds of the section that have such a key."""
    having = [_kind(other) for other in others if key in {item.name for item in dataclasses.fields(other)}]
    return f"; it belongs to kind: {' or '.join(having)}" if having else nearest(key, fields)


def _value(hint: Any, raw: Any, where: str) -> Any:
    """One value of a section."""
    from pydantic import TypeAdapter, ValidationError

    classes = [part for part in _parts(hint) if dataclasses.is_dataclass(part)]
    if classes:
        return None if raw is None and _allows(hint, type(None)) else _one_of(classes, raw, where)
    named = _named(hint)
    if named is not None and isinstance(raw, Mapping):
        return {str(key): read_section(named, each, f"{where}.{key}") for key, each in raw.items()}
    inner = _inner(hint)
    if inner is not None and isinstance(raw, list | tuple):
        return tuple(read_section(inner, each, f"{where}.{place}") for place, each in enumerate(raw))
    if isinstance(raw, bool) and not _allows(hint, bool):
        raise UserError(where, f"expected {_words(hint)}, got {raw!r}")
    try:
        value = TypeAdapter(hint).validate_python(raw)
    except ValidationError as error:
        raise UserError(where, _explain(hint, raw, error.errors())) from error
    _check_range(hint, value, where)
    return value


def _inner(hint: Any) -> type[Any] | None:
    """The dataclass of a tuple of dataclasses."""
    arguments = typing.get_args(hint)
    if not arguments or not dataclasses.is_dataclass(arguments[0]):
        return None
    return typing.cast(type[Any], arguments[0])


def _named(hint: Any) -> type[Any] | None:
    """The dataclass of a mapping from names to dataclasses."""
    if typing.get_origin(hint) is not Mapping or not dataclasses.is_dataclass(typing.get_args(hint)[1]):
        return None
    return typing.cast(type[Any], typing.get_args(hint)[1])


def _kind(cls: Any) -> str:
    return str({item.name: item.default for item in dataclasses.fields(cls)}["kind"])


def _one_of(classes: Sequence[Any], raw: Any, where: str) -> Any:
    """A dataclass; of several, the one that ``kind`` names, the first by default."""
    if len(classes) == 1:
        shorthand = getattr(classes[0], "shorthand", None)
        if shorthand and isinstance(raw, int | float | str) and not isinstance(raw, bool):
            raw = {shorthand: raw}
        return read_section(classes[0], {} if raw is None else raw, where)
    kinds = {_kind(cls): cls for cls in classes}
    given = {"kind": raw} if isinstance(raw, str) else raw or {}
    kind = given.get("kind", next(iter(kinds))) if isinstance(given, Mapping) else next(iter(kinds))
    if kind not in kinds:
        at = where if isinstance(raw, str) else f"{where}.kind"
        raise UserError(
            at, f"expected one of {', '.join(kinds)}, got {kind!r}{nearest(str(kind), list(kinds))}"
        )
    return read_section(kinds[kind], given, where, [cls for name, cls in kinds.items() if name != kind])


def _explain(hint: Any, value: Any, errors: Sequence[Any]) -> str:
    listed = any(typing.get_origin(part) is tuple for part in _parts(hint))
    for part in _parts(hint):
        if typing.get_origin(part) is Literal and isinstance(value, str) and not listed:
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
    return " or ".join(names.get(part) or _words_of_generic(part) for part in _parts(hint))


def _words_of_generic(part: Any) -> str:
    """Words for values listed one by one, and for lists; other types as Python writes them."""
    arguments = typing.get_args(part)
    if typing.get_origin(part) is Literal:
        return " or ".join(str(name) for name in arguments)
    if typing.get_origin(part) is tuple and arguments[1:] == (...,):
        inner = "mappings" if dataclasses.is_dataclass(arguments[0]) else _words(arguments[0])
        return f"a list of {inner}"
    return str(part).replace("typing.", "")


def kind_of_value(value: Any) -> str:
    """A value with its type, for messages."""
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
