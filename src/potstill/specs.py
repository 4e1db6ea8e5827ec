"""The one door for a user's own code and files: ``module:attribute``, ``file.py:attribute``, paths."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from potstill.errors import UserError, nearest

__all__ = ["attribute", "find"]


def find(path: str, search: Sequence[Path], where: str) -> Path:
    """The first existing file or folder of that name.

    Args:
        path: Absolute, or relative to one of ``search``.
        search: Folders to look in, in this order.
        where: Dotted key for the message.

    Raises:
        UserError: If it is nowhere; the message lists where it was looked for.
    """
    given = Path(path).expanduser()
    candidates = [given] if given.is_absolute() else [folder / given for folder in search]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates) or "no folder"
    raise UserError(where, f"{path!r} not found; looked for {looked}{_neighbour(candidates)}")


def _neighbour(candidates: Sequence[Path]) -> str:
    """A hint at a file of nearly that name."""
    for candidate in candidates:
        if candidate.parent.is_dir():
            hint = nearest(candidate.name, [item.name for item in candidate.parent.iterdir()])
            if "did you mean" in hint:
                return hint
    return ""


def attribute(spec: str, search: Sequence[Path], where: str) -> Any:
    """The object that ``module:attribute`` or ``path/file.py:attribute`` names.

    Args:
        spec: The name; a dotted attribute reaches into classes.
        search: Folders in which a file is looked up.
        where: Dotted key for the message.

    Raises:
        UserError: If the file, the module or the attribute is not there, or its code fails to import.

    Example:
        >>> attribute("math:pi", [], "example")
        3.141592653589793
    """
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise UserError(where, f"expected module:attribute or file.py:attribute, got {spec!r}")
    if source.endswith(".py"):
        module = _from_file(find(source, search, where), where)
    else:
        with _importing_from(search):
            module = _module(source, where)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = [item for item in vars(found) if not item.startswith("_")]
            raise UserError(where, f"{source} has no attribute {part!r}{nearest(part, names)}")
        found = getattr(found, part)
    return found


def _module(source: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        raise UserError(where, f"cannot import {source!r}: no module named {error.name!r}") from error
    except Exception as error:  # whatever the user's module raises is the user's to read
        raise UserError(where, f"importing {source!r} failed: {type(error).__name__}: {error}") from error


def _from_file(path: Path, where: str) -> ModuleType:
    """Import a file under a name of its own: the same module until the file changes."""
    path = path.resolve()
    version = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    name = f"potstill_user_{path.stem}_{version}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(where, f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution, so that its classes can be pickled for workers
    try:
        with _importing_from([path.parent]):
            spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises is the user's to read
        del sys.modules[name]
        raise UserError(where, f"running {path} failed: {type(error).__name__}: {error}") from error
    return module


@contextlib.contextmanager
def _importing_from(folders: Sequence[Path]) -> Iterator[None]:
    """Let imports in the block find modules that lie in ``folders``, after everything installed."""
    added = [str(folder) for folder in folders if str(folder) not in sys.path]
    sys.path.extend(added)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)
