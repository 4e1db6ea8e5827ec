"""Which methods are compared: names on the command line, or named ``distill`` blocks in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill import losses
from potstill.config import parse_yaml
from potstill.errors import UserError, nearest
from potstill.matching.terms import parse_terms

__all__ = ["CONTROL", "NAME", "line_up"]

CONTROL = "control"
RESERVED = (CONTROL, "teacher")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]*")


def line_up(methods: str | None, rows: Path | Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """The methods to compare, in the order given.

    Args:
        methods: Names with commas between them; ``a+b`` matches both, each with its default weight.
        rows: ``{name: {distill block}}``, or a YAML file of that.

    Returns:
        A ``distill`` block for each name.

    Raises:
        UserError: If a name is unknown or occurs twice, a block is not valid, or nothing is given.

    Example:
        >>> line_up("kl, kl+attention_transfer")
        {'kl': {'kl': {}}, 'kl+attention_transfer': {'kl': {}, 'attention_transfer': {}}}
    """
    found: dict[str, dict[str, Any]] = {}
    for name in (part.strip() for part in (methods or "").split(",")):
        if name in found:
            raise UserError("--methods", f"{name!r} occurs twice")
        if name:
            found[name] = _named(name)
    blocks = _read(rows) if isinstance(rows, Path) else rows or {}
    for name, block in blocks.items():
        if name in found:
            raise UserError("--rows", f"{name!r} is named by --methods too")
        found[name] = block
    if not found:
        raise UserError("--methods", "missing; expected names such as kl,attention_transfer, or --rows FILE")
    return found


def _named(name: str) -> dict[str, Any]:
    terms = name.split("+")
    for term in terms:
        if term not in losses.__all__:
            raise UserError("--methods", f"no such method {term!r}{nearest(term, losses.__all__)}")
        if terms.count(term) > 1:
            raise UserError("--methods", f"{term!r} occurs twice in {name!r}")
    return {term: {} for term in terms}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise UserError("--rows", f"expected a file of named distill blocks, got {path}")
    blocks = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    return {str(name): _checked(path, str(name), block) for name, block in blocks.items()}


def _checked(path: Path, name: str, block: Any) -> dict[str, Any]:
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UserError(
            f"{path}: {name!r}",
            "expected a name of letters, digits and _ . + = - that is not control or teacher",
        )
    if not isinstance(block, Mapping) or not block:
        raise UserError(f"{path}: {name}", f"expected a distill block such as {{kl: {{}}}}, got {block!r}")
    try:
        _, terms = parse_terms(block)
    except UserError as error:
        raise UserError(f"{path}: {name}: {error.where}", error.message) from error
    if not terms:
        raise UserError(f"{path}: {name}", "nothing is matched; that is what the control is for")
    return dict(block)
