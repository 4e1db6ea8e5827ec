"""From the recipe's ``data`` section to the three parts of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np

from potstill.data.arrays import load_arrays
from potstill.data.dataset import ImageSet, LabelledSet
from potstill.data.files import load_folder
from potstill.data.hub import load_huggingface
from potstill.data.named import load_torchvision
from potstill.data.own import from_datasets, parts_of
from potstill.data.split import cut, stratified
from potstill.data.texts import TextSet, load_texts
from potstill.errors import UserError
from potstill.losses import Range
from potstill.specs import attribute, find

__all__ = ["DataConfig", "Splits", "complete", "load_data", "load_text_data"]

COUNT = Range(least=1)
Part = TypeVar("Part")
Labelled = TypeVar("Labelled", bound=LabelledSet)
TEXTS = ("jsonl", "csv")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the networks learn from and are measured on."""

    kind: Literal["arrays", "folder", "torchvision", "huggingface", "own", "jsonl", "csv"] = "arrays"
    """How the data is stored."""
    path: str | None = None
    """Folder or file; for ``own`` ``file.py:attribute`` or ``module:attribute``; a hub name."""
    name: str | None = None
    """Class name of a torchvision data set."""
    size: Annotated[int, COUNT] | None = None
    """Resize the shorter side to this and cut the middle square; ``None`` leaves images as they are."""
    validation: Annotated[float, Range(above=0)] = 0.1
    """What to cut from the training part where no validation part is given: a share, or a number."""
    limit: Annotated[int, Range(least=2)] | None = None
    """Train on a stratified part of this many samples only; both arms see the same."""
    split_seed: Annotated[int, Range(least=0)] = 0
    """Seed of every cut; the same for all seeds of a run, and for later runs that compare with it."""
    image_column: str | None = None
    """Column of a Hugging Face data set."""
    text_column: str | None = None
    """Column of texts."""
    label_column: str | None = None
    """Column of labels."""
    max_length: Annotated[int, Range(least=2)] = 128
    """Tokens of a text beyond which it is cut."""
    workers: Annotated[int, Range(least=0)] = 0
    """Processes that decode images; sets in memory need none."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Passed on to the attribute or the library that makes the data set."""


@dataclass(frozen=True)
class Splits(Generic[Part]):
    """The three parts of a run.

    Attributes:
        train: What both arms are trained on.
        validation: What choices during training are made by.
        test: What the result is measured on, once.
        notes: What a reader should know of how they came about.
    """

    train: Part
    validation: Part
    test: Part
    notes: list[str] = field(default_factory=list)


def load_data(config: DataConfig, *, search: Sequence[Path]) -> Splits[ImageSet]:
    """Load the parts that a recipe names and cut those that are missing.

    Args:
        config: The recipe's ``data`` section.
        search: Folders in which a relative path is looked up.

    Raises:
        UserError: At the dotted key of what is missing or does not fit.
    """
    if config.kind in TEXTS:
        raise UserError("data.kind", f"{config.kind} holds texts; say task: text_classification")
    if config.kind == "torchvision":
        if config.name is None:
            raise UserError("data.name", "missing; kind torchvision needs the name of a data set, as CIFAR10")
        root = (
            find(config.path, search, "data.path") if config.path else (search[0] if search else Path.cwd())
        )
        parts = load_torchvision(config.name, root, config.arguments, config.size)
    elif config.path is None:
        raise UserError("data.path", f"missing; kind {config.kind} needs it")
    elif config.kind == "arrays":
        parts = load_arrays(find(config.path, search, "data.path"), config.size)
    elif config.kind == "folder":
        parts = load_folder(find(config.path, search, "data.path"), config.size)
    elif config.kind == "huggingface":
        columns = (config.image_column, config.label_column)
        parts = load_huggingface(_local(config.path, search), columns, config.arguments, config.size)
    else:
        made = attribute(config.path, search, "data.path")
        given = _called(made, config) if callable(made) else made
        parts = from_datasets(parts_of(given, "data.path"), None, config.size, "data.path: ")
    return complete(parts, config)


def load_text_data(config: DataConfig, *, search: Sequence[Path]) -> Splits[TextSet]:
    """The same for texts: ``jsonl``, ``csv`` or a ``huggingface`` set.

    Raises:
        UserError: At the dotted key of what is missing or does not fit.
    """
    if config.kind not in (*TEXTS, "huggingface"):
        raise UserError("data.kind", f"expected jsonl, csv or huggingface for texts, got {config.kind!r}")
    if config.path is None:
        raise UserError("data.path", f"missing; kind {config.kind} needs it")
    path = config.path
    source = _local(path, search) if config.kind == "huggingface" else str(find(path, search, "data.path"))
    columns = (config.text_column, config.label_column)
    return complete(load_texts(config.kind, source, columns, config.arguments), config)


def _local(name: str, search: Sequence[Path]) -> str:
    """The folder or file of that name, else the name, which is one on the hub."""
    return next((str(folder / name) for folder in search if (folder / name).exists()), name)


def _called(made: Any, config: DataConfig) -> Any:
    try:
        return made(**config.arguments)
    except TypeError as error:
        raise UserError("data.arguments", f"{config.path} refuses them: {error}") from error


def complete(parts: Mapping[str, Labelled], config: DataConfig) -> Splits[Labelled]:
    """Cut the missing parts from the training part, and limit what remains of it.

    Raises:
        UserError: If the parts have different classes or images, or there is too little to cut.
    """
    train, notes = parts["train"], []
    for part in ("validation", "test"):
        if part in parts:
            _check_alike(train, parts[part], part)
    if "test" in parts:
        test = parts["test"]
    else:
        train, test = cut(train, config.validation, config.split_seed + 1, "data.validation")
        notes.append(f"the data has no test part: {len(test)} samples were cut from the training part for it")
    if "validation" in parts:
        validation = parts["validation"]
    else:
        train, validation = cut(train, config.validation, config.split_seed, "data.validation")
        notes.append(f"{len(validation)} of the training samples were cut off for validation")
    if config.limit is not None and config.limit < len(train):
        before = len(train)
        train = train.subset(stratified(train.labels.numpy(), config.limit, config.split_seed).tolist())
        notes.append(f"only {len(train)} of {before} training samples are used (data.limit)")
    missing = np.setdiff1d(np.arange(len(train.class_names)), train.labels.numpy())
    if len(missing):
        notes.append(f"no training sample shows the class {train.class_names[missing[0]]!r}")
    return Splits(train, validation, test, notes)


def _check_alike(train: LabelledSet, other: LabelledSet, part: str) -> None:
    if other.class_names != train.class_names:
        raise UserError(
            f"data: {part}",
            f"expected the {len(train.class_names)} classes of the training part, got "
            f"{len(other.class_names)}: {', '.join(other.class_names[:6])}",
        )
    if not isinstance(train, ImageSet) or not isinstance(other, ImageSet):
        return
    if (other.channels, other.size) != (train.channels, train.size):
        raise UserError(
            f"data: {part}",
            f"expected images {(train.channels, *train.size)} as in training, got "
            f"{(other.channels, *other.size)}",
        )
