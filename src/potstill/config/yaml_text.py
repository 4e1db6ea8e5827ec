"""YAML as recipes are written in it, read safely, and single settings on top of it."""

from __future__ import annotations

import re
from typing import Any

import yaml

from potstill.errors import UserError
from potstill.sections import kind_of_value

__all__ = ["parse_yaml", "set_key"]


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
        raise UserError(where, f"expected a mapping of keys, got {kind_of_value(raw)}")
    return raw


def set_key(raw: dict[str, Any], override: str) -> None:
    """Set one dotted key in place; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError("--set", f"expected key=value, got {override!r}")
    *parents, last = key.split(".")
    node: Any = raw
    for depth, part in enumerate(parents):
        if node.get(part) is None:
            node[part] = {}
        if part == "scheme" and isinstance(node[part], str):  # a kind alone stands for its mapping
            node[part] = {"kind": node[part]}
        node = node[part]
        if not isinstance(node, dict):
            raise UserError(
                ".".join(parents[: depth + 1]), f"expected a mapping to set {last!r} in, got {node!r}"
            )
    try:
        node[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"--set {key}", f"not valid YAML: {text!r}") from error
