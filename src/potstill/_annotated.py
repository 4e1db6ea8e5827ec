"""What a recipe may set of a loss, and whether a value is what its annotation says: type and range."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from torch import Tensor

from potstill.errors import UserError
from potstill.losses._declare import Range, spec_of

__all__ = ["check_value", "options_of"]


def options_of(loss: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """The annotated type and the default of each option of a loss, by name.

    Options are its keyword-only parameters that are no tensors; for a loss that learns, those of the
    module that calls it, but for ``samples``, which is no choice.

    >>> from potstill.losses import kl
    >>> list(options_of(kl))
    ['temperature', 'standardize']
    """
    learns = spec_of(loss).learns
    source = loss if learns is None else vars(learns)["__init__"]
    hints = typing.get_type_hints(source, include_extras=True)
    return {
        name: (hints[name], parameter.default)
        for name, parameter in inspect.signature(source).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
        and name != "samples"
        and Tensor not in (typing.get_args(hints[name]) or (hints[name],))
    }


def check_value(where: str, value: Any, hint: Any) -> None:
    """Raise unless ``value`` is of the annotated type and within its ranges.

    Args:
        where: Dotted key for the message.
        value: What the user gave.
        hint: A type, union, ``Literal`` or ``Annotated[type, Range(...)]``; a bool is no number, and an
            integer will do for a float.

    Raises:
        UserError: With what was expected and what came.

    >>> check_value("distill.kl.temperature", 4, Annotated[float, Range(above=0)])
    """
    parts = list(_parts(hint))
    if not any(_fits(value, part) for part, _ in parts):
        expected = " or ".join(_words(part) for part, _ in parts)
        raise UserError(where, f"expected {expected}, got {value!r}")
    for part, limit in parts:
        if limit is None or not _fits(value, part):
            continue
        if limit.above is not None and not value > limit.above:
            raise UserError(where, f"must be > {limit.above:g}, got {value!r}")
        if limit.least is not None and not value >= limit.least:
            raise UserError(where, f"must be >= {limit.least:g}, got {value!r}")
        if limit.most is not None and not value <= limit.most:
            raise UserError(where, f"must be <= {limit.most:g}, got {value!r}")


def _parts(hint: Any, limit: Range | None = None) -> Iterator[tuple[Any, Range | None]]:
    """The alternatives of a type with the range of each, out of ``Annotated`` and unions."""
    if typing.get_origin(hint) is Annotated:
        inner, *extras = typing.get_args(hint)
        yield from _parts(inner, next((extra for extra in extras if isinstance(extra, Range)), limit))
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from _parts(part, limit)
    else:
        yield hint, limit


def _fits(value: Any, part: Any) -> bool:
    if typing.get_origin(part) is Literal:
        return any(value == name and type(value) is type(name) for name in typing.get_args(part))
    if part is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if part is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return part is Any or isinstance(value, part)


def _words(part: Any) -> str:
    if typing.get_origin(part) is Literal:
        return "one of " + ", ".join(str(name) for name in typing.get_args(part))
    named = {float: "a number", int: "an integer", bool: "true or false", str: "text", type(None): "null"}
    return named.get(part, str(part))
