"""Whose answers a cache holds, and headers that show whether they are as they were written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from potstill.errors import UserError
from potstill.files import read_json

__all__ = ["Identity", "sealed", "unsealed"]


@dataclass(frozen=True)
class Identity:
    """Whose answers to what: of two caches that differ in any of it, neither serves for the other.

    Attributes:
        facts: Plain words by what they are about.
    """

    facts: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits."""
        return hashlib.sha256(json.dumps(dict(self.facts), sort_keys=True).encode()).hexdigest()[:16]

    def refuse_other(self, there: Identity, where: str, key: str = "teacher.cache.path") -> None:
        """Refuse a cache of another identity, at the dotted ``key``.

        Raises:
            UserError: With both fingerprints and the first difference.
        """
        for name in {**there.facts, **self.facts}:
            old, new = there.facts.get(name, "nothing"), self.facts.get(name, "nothing")
            if old != new:
                raise UserError(
                    key,
                    f"{where} was made for another {name}: {old} there, {new} here (fingerprints "
                    f"{there.digest} and {self.digest}); name another path, or remove it",
                )


def sealed(header: Mapping[str, Any]) -> bytes:
    """A header as JSON with its own hash."""
    text = json.dumps(header, sort_keys=True)
    check = hashlib.sha256(text.encode()).hexdigest()
    return (json.dumps({**header, "sha256": check}, indent=2) + "\n").encode()


def unsealed(path: Path) -> dict[str, Any]:
    """A header that is as it was written.

    Args:
        path: Where :func:`sealed` content was written.

    Raises:
        UserError: If it is damaged.
    """
    header = read_json(path)
    check = header.pop("sha256", None)
    if check != hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest():
        raise UserError("teacher.cache.path", f"{path} is damaged; remove its folder, or name another path")
    return header
