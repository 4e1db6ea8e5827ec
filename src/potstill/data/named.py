"""Data sets by name that come with torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from potstill.data.dataset import ImageSet
from potstill.data.own import from_datasets
from potstill.errors import UserError, nearest

__all__ = ["load_torchvision"]


def load_torchvision(
    name: str, root: Path, arguments: Mapping[str, Any], size: int | None
) -> dict[str, ImageSet]:
    """A torchvision data set by class name (``CIFAR10``), read from ``root``, downloaded if missing.

    Raises:
        UserError: If torchvision is not installed, has no such set, or the files can be neither found nor
            downloaded.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise UserError(
            "data.kind", "torchvision is not installed: pip install 'potstill[vision]'"
        ) from error
    if name not in datasets.__all__:
        raise UserError("data.name", f"torchvision has no data set {name!r}{nearest(name, datasets.__all__)}")
    cls = getattr(datasets, name)
    options = dict(arguments)
    if _takes(cls, "root"):
        options.setdefault("root", str(root))
    parts = {part: _first(cls, name, options, ways) for part, ways in _choices(cls, options).items()}
    return from_datasets(parts, None, size, "data.name: ")


def _takes(cls: Any, option: str) -> bool:
    parameters = inspect.signature(cls).parameters
    return option in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _choices(cls: Any, options: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """How the constructor may name its parts, usual ways first; some sets have one part only."""
    named = inspect.signature(cls).parameters
    if "train" in named or ("split" in options and _takes(cls, "train")):
        return {"train": [{"train": True}], "test": [{"train": False}]}
    if "split" in named:
        splits = {"train": ("train", "trainval"), "test": ("test", "val")}
        return {part: [{"split": spelling} for spelling in spellings] for part, spellings in splits.items()}
    return {"train": [{}]}


def _first(cls: Any, name: str, options: Mapping[str, Any], ways: list[dict[str, Any]]) -> Any:
    """The part by the first spelling that the set knows; the error is that of the usual spelling."""
    refused: UserError | None = None
    for way in ways:
        try:
            return _made(cls, name, {**options, **way})
        except UserError as error:
            if not isinstance(error.__cause__, ValueError):
                raise
            refused = refused or error
    assert refused is not None
    raise refused


def _made(cls: Any, name: str, options: Mapping[str, Any]) -> Any:
    """One part of a set, downloaded if it is missing and can be."""
    where = options.get("root", "memory")
    try:
        try:
            return cls(**options)
        except (RuntimeError, OSError) as missing:
            if options.get("download") or not _takes(cls, "download"):
                raise UserError("data.name", f"{name} is not in {where}: {missing}") from missing
            return cls(**{**options, "download": True})
    except ImportError as error:
        raise UserError("data.name", f"{name} needs another library: {error}") from error
    except (RuntimeError, OSError) as error:
        raise UserError("data.name", f"{name} is not in {where} and cannot be downloaded: {error}") from error
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError("data.arguments", f"{name} refuses them: {error}") from error
